"""The committed table of registers, and a fresh build compared with it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from kernels import build
from kernels.errors import CompileError, ImageError
from kernels.nvrtc import registers, store
from kernels.nvrtc.cubin import Resources
from kernels.nvrtc.targets import CUBINS
from kernels.registry import SOURCES


def test_the_table_has_every_kernel_for_every_board_and_none_of_them_spills() -> None:
    table = registers.read_table()
    assert {arch: item["nvrtc"] for arch, item in table.items()} == {
        target.arch: f"{target.nvrtc[0]}.{target.nvrtc[1]}" for target in CUBINS.values()
    }
    for item in table.values():
        assert set(SOURCES) <= set(item["kernels"])
        assert [name for name, row in item["kernels"].items() if row[2] or row[3]] == []
        assert all(0 < row[0] <= 255 for row in item["kernels"].values())


@pytest.mark.slow
def test_a_fresh_build_takes_what_the_table_says(tmp_path: Path) -> None:
    try:
        build.compilers(CUBINS.values())
    except CompileError as problem:
        pytest.skip(f"{problem.message}: {problem.hint}")
    build.build(list(CUBINS.values()), tmp_path, jobs=len(os.sched_getaffinity(0)))
    assert registers.differences(store.read_manifest(tmp_path)) == [], "python -m kernels.build --table"


def test_a_table_survives_being_written_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registers, "TABLE", tmp_path / "registers.json")
    kernels = {"one": Resources(40, 0, 0, 0), "two": Resources(128, 1024, 0, 0)}
    entries = {
        f"a.{arch}.cubin": store.Entry("", "", 1, "12.6", (), {f"{name}_{arch}": kernels[name] for name in kernels})
        for arch in ("sm_87", "sm_90")
    }
    registers.write_table(entries)
    assert registers.read_table() == registers.table_of(entries)
    assert registers.read_table()["sm_90"]["kernels"]["two_sm_90"] == [128, 1024, 0, 0]


@pytest.mark.parametrize("content", ["{", "[]", '{"sm_87": {}}', '{"sm_87": {"nvrtc": "12.6", "kernels": 1}}'])
def test_a_damaged_table_is_an_error(content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registers, "TABLE", tmp_path / "registers.json")
    registers.TABLE.write_text(content)
    with pytest.raises(ImageError, match="cannot be read"):
        registers.read_table()


def test_the_committed_file_is_as_it_would_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = registers.TABLE.read_text()
    entries = {
        f"all.{arch}.cubin": store.Entry(
            "", "", 1, item["nvrtc"], (), {name: Resources(*row) for name, row in item["kernels"].items()}
        )
        for arch, item in json.loads(before).items()
    }
    monkeypatch.setattr(registers, "TABLE", tmp_path / "registers.json")
    registers.write_table(entries)
    assert registers.TABLE.read_text() == before
