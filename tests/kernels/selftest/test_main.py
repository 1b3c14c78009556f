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
from kernels.selftest.running import all_cases


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


@pytest.mark.usefixtures("compiler")
def test_a_kernel_that_no_case_launches_is_a_failure(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fewer = [case for case in all_cases() if case.entry != "gemv_g32_bf16"]
    monkeypatch.setattr(command, "all_cases", lambda: fewer)
    assert command.main(["--device", "emulator", "--json"]) == 4
    report = json.loads(capsys.readouterr().out)
    assert report["failed"]["gemv_g32_bf16"] == "no case launches it"
    assert report["not_launched"] == ["gemv_g32_bf16"]


def test_without_a_device_the_message_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(backend: str) -> None:
        raise NoDeviceError("no driver here", hint="--device emulator")

    monkeypatch.setattr(command, "open_device", nothing)
    assert command.main(["--device", "cuda"]) == 4
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "error: no driver here\nhint: --device emulator\n")


def test_a_family_that_is_not_there_is_refused_and_nothing_passes_for_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        command.main(["--device", "emulator", "--symbol", "gemw"])
    shown = capsys.readouterr()
    assert (left.value.code, shown.out) == (2, "")
    assert "'gemw'" in shown.err and "ptx" in shown.err


def test_auto_takes_the_emulator_only_where_there_is_no_gpu_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tried = []

    def without_gpu(backend: str) -> object:
        tried.append(backend)
        if backend != "emulator":
            raise NoDeviceError("no driver here")
        return open_device("emulator")

    monkeypatch.setattr(command, "open_device", without_gpu)
    device = command.choose_device("auto")
    assert (device.backend, tried) == ("emulator", ["auto", "emulator"])
    assert "no GPU" in capsys.readouterr().err
    device.close()
