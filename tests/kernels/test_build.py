"""Building images: what is written, what is left alone, and the table of registers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from kernels import build
from kernels.errors import CompileError, ImageError
from kernels.nvrtc import registers, sources, store
from kernels.nvrtc.cubin import Resources
from kernels.nvrtc.targets import CUBINS, PTX
from kernels.nvrtc.toolkit import find_toolkits
from tests.kernels.stub_nvrtc import KERNEL, Stub, make_cubin, make_log, make_stub

ALL = (*CUBINS.values(), PTX)


@pytest.fixture()
def stubs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Stub]:
    """Two sources and both compilers, in place of the real ones."""
    (tmp_path / "csrc").mkdir()
    for name in ("one.cu", "two.cu"):
        (tmp_path / "csrc" / name).write_text(f"// {name}\n")
    monkeypatch.setattr(sources, "CSRC", tmp_path / "csrc")
    monkeypatch.setattr(registers, "TABLE", tmp_path / "registers.json")
    return [make_stub(tmp_path / str(version[0]), version) for version in ((12, 6), (13, 0))]


def arguments(stubs: list[Stub], out: Path, *more: str) -> list[str]:
    return ["--jobs", "1", "--out", str(out), "--nvrtc", *(str(stub.root) for stub in stubs), *more]


def test_every_source_is_compiled_for_every_target_by_its_compiler(stubs: list[Stub], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert build.main(arguments(stubs, out)) == 0
    assert sorted(stubs[0].compiled()) == [f"{n}.cu {a}" for n in ("one", "two") for a in ("compute_80", "sm_87")]
    assert sorted(stubs[1].compiled()) == [f"{n}.cu {a}" for n in ("one", "two") for a in ("sm_110", "sm_90")]
    manifest = store.read_manifest(out)
    assert sorted(path.name for path in out.iterdir()) == sorted([*manifest, "manifest.json"])
    for name, entry in manifest.items():
        assert entry.sha256 == hashlib.sha256((out / name).read_bytes()).hexdigest()
        assert entry.kernels == ({} if name.endswith("ptx") else KERNEL)
        assert entry.nvrtc == ("13.0" if "sm_90" in name or "sm_110" in name else "12.6")


def test_what_is_current_is_left_alone_and_what_is_not_is_made_again(stubs: list[Stub], tmp_path: Path) -> None:
    out, roots = tmp_path / "out", [stub.root for stub in stubs]
    assert len(build.build(ALL, out, roots)) == 8
    assert build.build(ALL, out, roots) == []
    (sources.CSRC / "one.cu").write_text("// changed\n")
    (out / "two.sm_87.cubin").write_bytes(b"damaged")
    assert build.build(ALL, out, roots) == [*(f"one.{target.suffix}" for target in ALL), "two.sm_87.cubin"]
    (out / "manifest.json").write_text("{")
    assert len(build.build(ALL, out, roots)) == 8


def test_images_of_a_source_that_is_gone_go_too(stubs: list[Stub], tmp_path: Path) -> None:
    out, roots = tmp_path / "out", [stub.root for stub in stubs]
    build.build(ALL, out, roots)
    (sources.CSRC / "two.cu").unlink()
    build.build(ALL, out, roots)
    assert sorted(path.name for path in out.iterdir()) == sorted([*(f"one.{t.suffix}" for t in ALL), "manifest.json"])


def test_a_refusal_leaves_the_images_that_were_there(
    stubs: list[Stub], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    build.main(arguments(stubs, out, "--arch", "87"))
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    (sources.CSRC / "one.cu").write_text("REFUSE\n")
    assert build.main(arguments(stubs, out, "--arch", "87")) == build.EXIT_KERNELS
    assert "refused one.cu for sm_87" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_several_processes_make_what_one_makes(
    stubs: list[Stub], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for jobs in ("1", "2"):
        assert build.main(arguments(stubs, tmp_path / jobs, "--jobs", jobs)) == 0
    assert {p.name: p.read_bytes() for p in (tmp_path / "1").iterdir()} == {
        p.name: p.read_bytes() for p in (tmp_path / "2").iterdir()
    }
    (sources.CSRC / "two.cu").write_text("REFUSE\n")
    assert build.main(arguments(stubs, tmp_path / "2", "--jobs", "2")) == build.EXIT_KERNELS
    assert "refused two.cu for sm_87" in capsys.readouterr().err


def test_a_missing_compiler_is_named_with_the_command_that_brings_it(
    stubs: list[Stub], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "find_toolkits", lambda folders: [])
    assert build.main(["--out", str(tmp_path / "out"), "--arch", "110"]) == build.EXIT_CONFIGURATION
    shown = capsys.readouterr().err
    assert "NVRTC 12.6 with CUDA's headers was not found" in shown
    assert "python -m pip install nvidia-cuda-nvrtc-cu12==12.6" in shown


def test_another_version_of_the_compiler_is_not_taken_for_the_pinned_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make_stub(tmp_path / "other", (12, 9))
    monkeypatch.setattr(build, "find_toolkits", lambda folders: find_toolkits(folders)[:1])
    with pytest.raises(CompileError, match=r"NVRTC 12\.6 .* \(here: 12\.9 at .*libnvrtc"):
        build.compilers([CUBINS[87]], [other.root])


def test_a_folder_that_cannot_be_written_is_exit_status_8(stubs: list[Stub], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert build.main(arguments(stubs, tmp_path / "file" / "out")) == build.EXIT_DISK


def change(stub: Stub, arch: str, kernels: Mapping[str, Resources]) -> None:
    (stub.images / arch).write_bytes(make_cubin(kernels))
    (stub.images / "log").write_text(make_log(kernels))


@pytest.mark.parametrize(
    ("taken", "words"),
    [
        ({"scale": Resources(41, 256, 0, 0)}, "sm_87 scale: 41 registers, 256 shared_bytes"),
        ({"scale": Resources(40, 256, 0, 8)}, "0 bytes of stack and 8 of spills, where none are allowed"),
        ({"scale": Resources(40, 256, 32, 0)}, "32 bytes of stack and 0 of spills"),
        ({"other": Resources(40, 256, 0, 0)}, "sm_87 other: not in the table"),
        ({"other": Resources(40, 256, 0, 0)}, "sm_87 scale: in the table alone"),
    ],
)
def test_the_check_names_what_differs_from_the_table(
    taken: dict[str, Resources], words: str, stubs: list[Stub], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build.main(arguments(stubs, tmp_path / "first", "--table")) == 0
    assert build.main(arguments(stubs, tmp_path / "second", "--check", "--arch", "87")) == 0
    change(stubs[0], "sm_87", taken)
    assert build.main(arguments(stubs, tmp_path / "third", "--check", "--arch", "87")) == build.EXIT_KERNELS
    assert words in capsys.readouterr().err


def test_spills_are_refused_even_when_the_table_has_them(stubs: list[Stub], tmp_path: Path) -> None:
    change(stubs[0], "sm_87", {"scale": Resources(40, 256, 16, 32)})
    assert build.main(arguments(stubs, tmp_path / "out", "--arch", "87", "--table", "--check")) == build.EXIT_KERNELS


def test_json_is_one_line(stubs: list[Stub], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert build.main(arguments(stubs, tmp_path / "out", "--json", "--arch", "90", "--no-ptx")) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["images"], shown["compiled"]) == (2, ["one.sm_90.cubin", "two.sm_90.cubin"])


def test_a_manifest_of_another_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"version": 99, "images": {}}')
    with pytest.raises(ImageError, match="version 99, expected 1"):
        store.read_manifest(tmp_path)
