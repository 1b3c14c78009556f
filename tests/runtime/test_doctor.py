"""The doctor's findings, exit status and output, on machines made for the test."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from kernels.nvrtc.toolkit import Toolkit
from runtime import availability, doctor, machine
from runtime.errors import ConfigError

GIB = 1 << 30
ROOT = Path(__file__).resolve().parents[2]
RUNS = availability.Engine("onnx", "on the CPU", ())
LACKS = availability.Engine("cuda", "on a GPU", ("no driver",), "install the driver")


@pytest.fixture
def quiet_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four cores, 8 GiB, a large disk, no board, one build of each library."""
    monkeypatch.setattr(doctor, "engines", lambda: (RUNS, LACKS))
    monkeypatch.setattr(doctor, "installed", lambda name: "1" if name in ("onnxruntime", "opencv-python") else None)
    monkeypatch.setattr(machine, "cpu", lambda: machine.Cpu(4, 4, None))
    monkeypatch.setattr(machine, "memory", lambda: machine.Memory(8 * GIB, 6 * GIB, None))
    monkeypatch.setattr(machine, "disk_free_bytes", lambda path: 100 * GIB)
    offer(monkeypatch, ())


def offer(monkeypatch: pytest.MonkeyPatch, points: tuple[metadata.EntryPoint, ...]) -> None:
    monkeypatch.setattr(metadata, "entry_points", lambda group: metadata.EntryPoints(points).select(group=group))


def problems(report: doctor.Report) -> dict[str, doctor.Check]:
    return {check.name: check for check in report.checks if check.status == "problem"}


@pytest.mark.usefixtures("quiet_machine")
def test_a_machine_with_one_engine_is_fit_and_has_no_problems() -> None:
    report = doctor.examine()
    assert report.exit_code == 0
    assert problems(report) == {}


@pytest.mark.usefixtures("quiet_machine")
def test_without_any_engine_the_exit_status_is_4_and_each_reason_and_fix_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(doctor, "engines", lambda: (LACKS,))
    report = doctor.examine()
    assert report.exit_code == 4
    text = doctor.text(report)
    assert "cannot run: on a GPU" in text
    assert "why: no driver" in text
    assert "fix: install the driver" in text


@pytest.mark.usefixtures("quiet_machine")
@pytest.mark.parametrize(
    "pair",
    [("onnxruntime", "onnxruntime-gpu"), ("opencv-python-headless", "opencv-python")],
    ids=["onnxruntime", "opencv"],
)
def test_distributions_that_overwrite_each_other_are_named_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch, pair: tuple[str, str]
) -> None:
    monkeypatch.setattr(doctor, "installed", lambda name: "1" if name in pair else None)
    check = problems(doctor.examine())[f"{pair[0]} twice"]
    assert check.what == f"{pair[0]} and {pair[1]} are installed"
    assert f"pip uninstall {pair[0]} {pair[1]}" in str(check.fix)


@pytest.mark.usefixtures("quiet_machine")
def test_a_tight_cpu_quota_names_the_number_of_threads_to_ask_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cpu", lambda: machine.Cpu(8, 8, 2.5))
    check = next(check for check in doctor.examine().checks if check.name == "threads")
    assert check.status == "note"
    assert check.fix == "pass threads=2 to Session.open"


@pytest.mark.usefixtures("quiet_machine")
def test_a_full_disk_names_the_space_and_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "disk_free_bytes", lambda path: GIB // 2)
    check = problems(doctor.examine())["cache"]
    assert check.what.startswith("0.5 GiB free at ")
    assert "XDG_CACHE_HOME" in str(check.fix)


@pytest.mark.usefixtures("quiet_machine")
def test_a_bundle_that_cannot_be_opened_is_a_problem_with_status_4(tmp_path: Path) -> None:
    report = doctor.examine(str(tmp_path / "nothing"))
    assert report.exit_code == 4
    assert "nothing" in problems(report)["bundle"].what


class _Orin:
    model = "NVIDIA Jetson Orin Nano"
    l4t = (36, 4, 3)
    memory_bytes = 8 * GIB


def orin() -> _Orin:
    return _Orin()


def refusing() -> _Orin:
    raise ConfigError("release file of an unknown form", hint="reinstall it")


def point(name: str, monkeypatch: pytest.MonkeyPatch) -> metadata.EntryPoint:
    """An entry point of this very module, which tests run without a package name of their own."""
    monkeypatch.setitem(sys.modules, "board_for_doctor", sys.modules[__name__])
    return metadata.EntryPoint(name=name, value=f"board_for_doctor:{name}", group="vlm.board")


@pytest.mark.usefixtures("quiet_machine")
@pytest.mark.parametrize(
    ("missing", "toolkits", "status", "told"),
    [
        ({"sm_90"}, (), "ok", "compiled for sm_87"),
        ({"sm_87", "sm_90"}, ("libnvrtc.so.12",), "note", "found libnvrtc.so.12"),
        ({"sm_87", "sm_90"}, (), "note", "there is no NVRTC"),
    ],
)
def test_compiled_kernels_or_what_will_compile_them_are_named(
    monkeypatch: pytest.MonkeyPatch, missing: set[str], toolkits: tuple[str, ...], status: str, told: str
) -> None:
    def installed(source: str) -> dict[str, str | None]:
        # One missing source makes a whole target useless.
        lacks = missing if source == "gemv.cu" else set()
        return {arch: "not there" if arch in lacks else None for arch in ("sm_87", "sm_90")}

    found = [Toolkit(Path("lib", name), 12, Path("include")) for name in toolkits]
    monkeypatch.setattr("kernels.images.installed_images", installed)
    monkeypatch.setattr("kernels.nvrtc.toolkit.find_toolkits", lambda: found)
    check = doctor.kernels_check()
    assert check.status == status
    assert told in check.what
    assert (check.fix is None) == (status == "ok")


def test_board_is_found_through_its_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, (point("orin", monkeypatch),))
    assert doctor.board().what == "NVIDIA Jetson Orin Nano, L4T 36.4.3, 8.0 GiB"


@pytest.mark.usefixtures("quiet_machine")
def test_board_that_cannot_be_read_is_a_problem_with_its_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, (point("refusing", monkeypatch),))
    check = doctor.board()
    assert check.status == "problem"
    assert "release file of an unknown form" in check.what
    assert check.fix == "reinstall it"


@pytest.mark.usefixtures("quiet_machine")
def test_entry_point_that_leads_nowhere_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, (metadata.EntryPoint("x", "no_such_module_at_all:detect", "vlm.board"),))
    assert doctor.board().status == "problem"


@pytest.mark.usefixtures("quiet_machine")
def test_json_carries_the_same_findings_as_the_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["ok"] is True
    assert [engine["can_run"] for engine in value["engines"]] == [True, False]
    assert doctor.main([]) == 0
    text = capsys.readouterr().out
    assert all(check["what"] in text for check in value["checks"])


def test_report_of_this_machine_comes_from_the_command_line() -> None:
    done = subprocess.run([sys.executable, "-m", "runtime.doctor"], capture_output=True, text=True, cwd=ROOT)
    assert done.stderr == ""
    assert done.returncode in (0, 4)
    assert done.stdout.startswith("versions\n  jetson-vlm")


def test_a_reader_that_leaves_early_causes_no_traceback() -> None:
    command = f"{sys.executable} -m runtime.doctor | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=ROOT)
    assert done.stderr == ""
