"""The journal: whose work it is, and one process at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from export.quantization.journal import open_journal, partial_folder
from runtime.errors import OutputError

WORK = {"checkpoint": "a" * 64, "group_size": 128, "calibration": None}


def test_finished_steps_are_found_again(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    with open_journal(out, WORK, force=False) as journal:
        assert not journal.has("layer-0000")
        journal.write_array("states/00000", np.arange(6.0, dtype=np.float32).reshape(2, 3))
        journal.finish("layer-0000", {"loss": 0.1})
    with open_journal(out, WORK, force=False) as journal:
        assert journal.has("layer-0000")
        assert journal.record("layer-0000") == {"loss": 0.1}
        assert journal.has_array("states/00000")
        np.testing.assert_array_equal(journal.read_array("states/00000"), [[0, 1, 2], [3, 4, 5]])
        journal.drop("states")
        assert not journal.has_array("states/00000")
    assert partial_folder(out) == tmp_path / "new" / "out.partial"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"group_size": 64}, "its group_size is 128, not 64"),
        ({"checkpoint": "b" * 64}, "its checkpoint is aaaaaaaaaaaa…, not bbbbbbbbbbbb…"),
        ({"calibration": "c" * 64}, "its calibration is None, not cccccccccccc…"),
    ],
)
def test_work_on_something_else_is_refused_by_name_or_dropped(
    tmp_path: Path, change: dict[str, object], said: str
) -> None:
    out = tmp_path / "out"
    with open_journal(out, WORK, force=False) as journal:
        journal.finish("layer-0000", {})
    with pytest.raises(OutputError, match=said) as caught:
        with open_journal(out, WORK | change, force=False):
            raise AssertionError("was opened")
    assert "--force" in str(caught.value.hint)
    with open_journal(out, WORK | change, force=True) as journal:
        assert not journal.has("layer-0000")


def test_force_keeps_work_that_fits(tmp_path: Path) -> None:
    with open_journal(tmp_path / "out", WORK, force=False) as journal:
        journal.finish("layer-0000", {})
    with open_journal(tmp_path / "out", WORK, force=True) as journal:
        assert journal.has("layer-0000")


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    with open_journal(tmp_path / "out", WORK, force=False):
        with pytest.raises(OutputError, match="another process is working there"):
            with open_journal(tmp_path / "out", WORK, force=True):
                raise AssertionError("was opened")


def test_a_kill_before_the_first_step_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    folder = partial_folder(tmp_path / "out")
    folder.mkdir()
    (folder / ".journal.json.writing").write_text("{")
    with open_journal(tmp_path / "out", WORK, force=False) as journal:
        assert not journal.has("layer-0000")


def test_another_folder_of_that_name_is_not_touched(tmp_path: Path) -> None:
    folder = partial_folder(tmp_path / "out")
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputError, match=r"there is no journal\.json"):
        with open_journal(tmp_path / "out", WORK, force=False):
            raise AssertionError("was opened")
    with pytest.raises(OutputError, match=r"there is no journal\.json"):
        with open_journal(tmp_path / "out", WORK, force=True):
            raise AssertionError("was opened")
    assert (folder / "thesis.txt").is_file()


def test_damaged_files_are_named(tmp_path: Path) -> None:
    with open_journal(tmp_path / "out", WORK, force=False) as journal:
        journal.write_array("a", np.zeros(3))
        (journal.folder / "a.npy").write_bytes(b"\x93NUMPY")
        (journal.folder / "s.json").write_text("[]")
        with pytest.raises(OutputError, match=r"a\.npy: cannot be read"):
            journal.read_array("a")
        with pytest.raises(OutputError, match=r"s\.json: expected an object"):
            journal.record("s")
