"""The command: one line of JSON, its figures and its exit status."""

from __future__ import annotations

import json
import shutil

import pytest

from kernels.driver.opening import open_device
from kernels.errors import NoDeviceError
from kernels.registry import KERNELS
from kernels.selftest import __main__ as command
from kernels.selftest.golden import read_golden


@pytest.fixture()
def compiler() -> None:
    if shutil.which("g++") is None:
        pytest.skip("needs g++")


@pytest.mark.usefixtures("compiler")
def test_all_kernels_are_within_their_bounds_on_the_emulator(capsys: pytest.CaptureFixture[str]) -> None:
    status = command.main(["--device", "emulator"])
    shown = capsys.readouterr()
    report = json.loads(shown.out)
    assert report["failed"] == {}
    assert (status, report["ok"], report["backend"]) == (0, True, "emulator")
    assert set(report["symbols"]) == {"ptx", *KERNELS}
    assert report["cases"] == len(read_golden())
    assert all(0 <= symbol["worst"] <= 1 for symbol in report["symbols"].values())
    assert "ptx: done" in shown.err


@pytest.mark.usefixtures("compiler")
def test_a_failure_is_in_the_line_and_in_the_exit_status(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "read_golden", dict)
    assert command.main(["--device", "emulator", "--symbol", "ptx", "--json"]) == 4
    shown = capsys.readouterr()
    report = json.loads(shown.out)
    assert shown.out.count("\n") == 1 and shown.err == ""
    assert report["ok"] is False
    assert set(report["failed"].values()) == {"no golden answer was recorded for it"}


def test_without_a_device_the_message_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(backend: str) -> None:
        raise NoDeviceError("no driver here", hint="--device emulator")

    monkeypatch.setattr(command, "open_device", nothing)
    assert command.main(["--device", "cuda"]) == 4
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "error: no driver here\nhint: --device emulator\n")


def test_auto_takes_the_emulator_only_where_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def without_gpu(backend: str) -> object:
        tried.append(backend)
        if backend != "emulator":
            raise NoDeviceError("no driver here")
        return open_device("emulator")

    monkeypatch.setattr(command, "open_device", without_gpu)
    device = command.choose_device("auto")
    assert (device.backend, tried) == ("emulator", ["auto", "emulator"])
    device.close()
