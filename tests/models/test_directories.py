"""A directory takes its place as a whole, or what was there stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.errors import OutputError

directories = pytest.importorskip("models.directories", exc_type=ImportError)


def test_the_new_directory_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    for text in ("first", "second"):
        with directories.replaced_directory(out) as building:
            (building / text).write_text(text)
        assert [path.name for path in out.iterdir()] == [text]
        assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert out.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize(("raised", "seen"), [(OSError(28, "full"), OutputError), (KeyError("x"), KeyError)])
def test_an_error_leaves_what_was_there_and_nothing_else(tmp_path: Path, raised: Exception, seen: type) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").touch()
    with pytest.raises(seen), directories.replaced_directory(out) as building:
        (building / "half").touch()
        raise raised
    assert [path.name for path in out.iterdir()] == ["old"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
