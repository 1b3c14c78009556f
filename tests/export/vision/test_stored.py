"""Stored graphs are used for the key that they were made for, and never when they are damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from export.vision.names import PROJECTOR_FILE, TOWER_FILE
from export.vision.stored import RECORD, TracedGraphs, link_or_copy, ours_alone, read_traced, write_traced
from runtime.errors import ExportError, OutputError


@pytest.fixture
def graphs(tmp_path: Path) -> TracedGraphs:
    folder = tmp_path / "made"
    folder.mkdir()
    (folder / TOWER_FILE).write_bytes(b"tower")
    (folder / PROJECTOR_FILE).write_bytes(b"projector")
    return TracedGraphs(folder, 1e-6, 2e-6, 1e-4)


def test_graphs_come_back_for_their_key_alone(graphs: TracedGraphs, tmp_path: Path) -> None:
    kept = write_traced(graphs, tmp_path / "onnx", "key")
    assert read_traced(tmp_path / "onnx", "key") == kept
    assert read_traced(tmp_path / "onnx", "other key") is None
    assert read_traced(tmp_path / "nowhere", "key") is None
    assert sorted(path.name for path in (tmp_path / "onnx").iterdir()) == sorted([RECORD, TOWER_FILE, PROJECTOR_FILE])


def test_graphs_without_a_record_do_not_count(graphs: TracedGraphs) -> None:
    assert read_traced(graphs.folder, "key") is None


@pytest.mark.parametrize("damage", ["flipped", "missing", "record", "numbers"])
def test_damaged_graphs_are_refused(graphs: TracedGraphs, tmp_path: Path, damage: str) -> None:
    folder = write_traced(graphs, tmp_path / "onnx", "key").folder
    record = json.loads((folder / RECORD).read_text())
    if damage == "flipped":
        (folder / TOWER_FILE).write_bytes(b"towes")
    elif damage == "missing":
        (folder / PROJECTOR_FILE).unlink()
    elif damage == "record":
        (folder / RECORD).write_text(json.dumps(record | {"files": None}))
    else:
        (folder / RECORD).write_text(json.dumps(record | {"tower_max_error": "small"}))
    with pytest.raises(ExportError) as refused:
        read_traced(folder, "key")
    assert "--save-traced" in (refused.value.hint or "")


def test_folder_that_cannot_be_written_is_an_output_error(graphs: TracedGraphs, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="cannot be kept"):
        write_traced(graphs, tmp_path / "file" / "onnx", "key")


def test_folder_of_others_is_not_ours(tmp_path: Path) -> None:
    assert ours_alone(tmp_path)
    tmp_path.chmod(0o775)
    assert not ours_alone(tmp_path)
    assert not ours_alone(tmp_path / "nowhere")


def test_file_is_linked_or_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"x")
    link_or_copy(tmp_path / "a", tmp_path / "deep" / "b")
    assert (tmp_path / "deep" / "b").stat().st_ino == (tmp_path / "a").stat().st_ino

    def refuse(source: Path, target: Path) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("os.link", refuse)
    link_or_copy(tmp_path / "a", tmp_path / "c")
    assert (tmp_path / "c").read_bytes() == b"x"
    assert (tmp_path / "c").stat().st_ino != (tmp_path / "a").stat().st_ino
