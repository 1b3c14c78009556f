"""Boards are recognised from copies of the files that the boards carry."""

from __future__ import annotations

from pathlib import Path

import pytest

from jetson.board import Board, detect
from runtime.errors import ConfigError

MODEL = b"NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0"
RELEASE = "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8 2025\n"
MEMINFO = "MemTotal:        7802928 kB\nMemFree:         1000000 kB\n"


def board_root(root: Path, model: bytes = MODEL, release: str | None = RELEASE, meminfo: str = MEMINFO) -> Path:
    (root / "proc/device-tree").mkdir(parents=True)
    (root / "etc").mkdir()
    (root / "proc/device-tree/model").write_bytes(model)
    (root / "proc/meminfo").write_text(meminfo)
    if release is not None:
        (root / "etc/nv_tegra_release").write_text(release)
    return root


def test_orin_nano_with_jetpack_6_is_recognised_with_release_and_memory(tmp_path: Path) -> None:
    assert detect(board_root(tmp_path)) == Board(
        "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super", (36, 4, 3), 7802928 * 1024
    )


@pytest.mark.parametrize(
    ("line", "numbers"),
    [
        ("# R35 (release), REVISION: 4.1, GCID: 33958178, BOARD: t186ref", (35, 4, 1)),
        ("# R38 (release), REVISION: 2.0, GCID: 41844464, BOARD: generic", (38, 2, 0)),
        ("# R39 (release), REVISION: 2, GCID: 1, BOARD: generic", (39, 2)),
    ],
)
def test_releases_become_numbers_that_compare(tmp_path: Path, line: str, numbers: tuple[int, ...]) -> None:
    board = detect(board_root(tmp_path, release=line))
    assert board is not None
    assert board.l4t == numbers


def test_container_without_the_release_file_is_still_the_board(tmp_path: Path) -> None:
    board = detect(board_root(tmp_path, release=None))
    assert board is not None
    assert board.l4t is None


@pytest.mark.parametrize("model", [b"Raspberry Pi 5 Model B Rev 1.0\0", b"\0"])
def test_other_boards_are_not_taken_for_a_jetson(tmp_path: Path, model: bytes) -> None:
    assert detect(board_root(tmp_path, model=model)) is None


def test_machine_without_a_device_tree_is_no_board(tmp_path: Path) -> None:
    assert detect(tmp_path) is None


def test_environment_names_another_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLM_BOARD_ROOT", str(board_root(tmp_path)))
    board = detect()
    assert board is not None
    assert board.l4t == (36, 4, 3)


def test_release_file_of_another_form_is_refused_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nv_tegra_release begins with 'jetpack six'") as caught:
        detect(board_root(tmp_path, release="jetpack six"))
    assert "nvidia-l4t-core" in str(caught.value.hint)


def test_missing_memory_total_is_refused_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="meminfo has no line 'MemTotal"):
        detect(board_root(tmp_path, meminfo="Mem: many\n"))
