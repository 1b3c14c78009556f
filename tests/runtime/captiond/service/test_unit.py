"""The unit file fits the daemon that it starts."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from runtime.captiond import service
from runtime.captiond.__main__ import parse
from runtime.captiond.config import EngineSettings

UNIT = Path(service.__file__).parent / "vlm-captiond.service"


@pytest.fixture(scope="module")
def unit() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read(UNIT)
    return parser


def test_start_command_is_one_that_the_command_line_takes(unit: configparser.ConfigParser) -> None:
    command = unit["Service"]["ExecStart"].split()
    assert command[0].endswith("/vlm-captiond")
    assert parse(command[1:]).config == "/etc/jetson-vlm/captiond.toml"


def test_watchdog_is_longer_than_the_engines_own(unit: configparser.ConfigParser) -> None:
    assert unit["Service"]["Type"] == "notify"
    assert int(unit["Service"]["WatchdogSec"]) >= EngineSettings().hang_s + 20
    assert int(unit["Service"]["TimeoutStopSec"]) > 3


def test_wrong_configuration_is_not_tried_again_and_everything_else_is(unit: configparser.ConfigParser) -> None:
    assert unit["Service"]["Restart"] == "always"
    assert unit["Service"]["RestartPreventExitStatus"].split() == ["2", "3"]
    assert unit["Service"]["OOMPolicy"] == "continue"  # a capture that was taken is started again by the daemon


def test_unit_is_hardened(unit: configparser.ConfigParser) -> None:
    wanted = {
        "NoNewPrivileges": "yes",
        "CapabilityBoundingSet": "",
        "ProtectSystem": "strict",
        "ProtectHome": "yes",
        "PrivateTmp": "yes",
        "DevicePolicy": "closed",
        "SystemCallFilter": "@system-service",
    }
    assert {name: unit["Service"].get(name) for name in wanted} == wanted


def test_systemd_finds_no_mistake_in_it(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze (Debian: systemd)")
    text = UNIT.read_text().replace("/opt/jetson-vlm/bin/vlm-captiond", "/bin/true")
    (tmp_path / UNIT.name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", str(tmp_path / UNIT.name)], capture_output=True, text=True, timeout=60
    )
    assert [line for line in done.stderr.splitlines() if UNIT.name in line] == []


def test_exposure_as_systemd_counts_it_is_at_most_three(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze (Debian: systemd)")
    (tmp_path / UNIT.name).write_text(UNIT.read_text())
    command = ["systemd-analyze", "security", "--offline=yes", "--no-pager", str(tmp_path / UNIT.name)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    if found is None:
        pytest.skip("this systemd-analyze does not judge a unit that is not installed")
    assert float(found[1]) <= 3.0
