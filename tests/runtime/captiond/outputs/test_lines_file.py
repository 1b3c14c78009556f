"""A file of JSON lines is whole to its last line: after kills, torn writes, full disks and rotations."""

from __future__ import annotations

import fcntl
import json
import os
import random
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from runtime.captiond.outputs.lines_file import LinesFile
from runtime.errors import OutputError

ROOT = Path(__file__).resolve().parents[4]


def line(number: int, size: int = 20) -> bytes:
    return json.dumps({"number": number, "text": "x" * size}).encode() + b"\n"


def opened(path: Path, max_bytes: int = 1_000_000, keep: int = 3) -> LinesFile:
    file = LinesFile(str(path), max_bytes=max_bytes, keep=keep)
    file.open()
    return file


def numbers(path: Path) -> list[int]:
    """Every line of the file; all must be whole."""
    data = path.read_bytes()
    assert data == b"" or data.endswith(b"\n")
    return [json.loads(one)["number"] for one in data.splitlines()]


@settings(max_examples=60)
@given(st.integers(0, 5), st.integers(0, 60), st.integers(0, 30))
@example(2, len(line(2)) - 1, 5)  # whole but for its line break, then zeros
def test_a_file_cut_anywhere_is_mended_to_whole_lines(
    tmp_path_factory: object, whole: int, cut: int, zeros: int
) -> None:
    path = tmp_path_factory.mktemp("cut") / "lines"  # type: ignore[attr-defined]
    torn = line(whole)
    data = b"".join(line(number) for number in range(whole)) + torn[:cut] + b"\0" * zeros
    path.write_bytes(data)
    file = opened(path)
    file.append([line(99)])
    file.close()
    kept = whole + (cut >= len(torn) - 1)
    assert numbers(path) == [*range(kept), 99]


def test_what_is_no_file_of_json_lines_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "notes"
    path.write_text("dear diary,\nno line break at the end", encoding="utf-8")
    with pytest.raises(OutputError, match="not a file of JSON lines"):
        opened(path)
    assert path.read_text(encoding="utf-8").startswith("dear diary")


def test_rotation_keeps_so_many_files_and_loses_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "log" / "lines"
    file = opened(path, max_bytes=200, keep=2)
    for number in range(20):
        assert file.append([line(number)]) == 1
    file.close()
    names = sorted(one.name for one in path.parent.iterdir())
    assert names == ["lines", "lines.1", "lines.2"]
    read = [number for name in reversed(names) for number in numbers(path.parent / name)]
    assert read == list(range(20))[-len(read) :]
    assert all((path.parent / name).stat().st_size <= 200 for name in names)
    assert len(read) >= 9


def test_lines_that_come_together_are_spread_over_files(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    file = opened(path, max_bytes=200, keep=9)
    waiting = [line(number) for number in range(12)]
    while waiting:
        waiting = waiting[file.append(waiting) :]
    file.close()
    found = sorted(tmp_path.iterdir(), reverse=True, key=lambda one: one.name)
    assert [number for one in found for number in numbers(one)] == list(range(12))


def test_without_files_to_keep_it_begins_again(tmp_path: Path) -> None:
    file = opened(tmp_path / "lines", max_bytes=100, keep=0)
    for number in range(10):
        file.append([line(number)])
    file.close()
    assert [one.name for one in tmp_path.iterdir()] == ["lines"]
    assert numbers(tmp_path / "lines")[-1] == 9


def test_a_file_that_others_rotate_or_delete_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    file = opened(path)
    file.append([line(1)])
    path.rename(tmp_path / "old")
    file.append([line(2)])
    path.unlink()
    file.append([line(3)])
    file.close()
    assert (numbers(tmp_path / "old"), numbers(path)) == ([1], [3])


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    file = opened(tmp_path / "lines")
    with pytest.raises(OutputError, match="another process"):
        opened(tmp_path / "lines")
    file.close()
    opened(tmp_path / "lines").close()


def test_a_write_that_is_cut_short_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    file = opened(path)
    file.append([line(1)])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            file.append([line(2)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert numbers(path) == [1]
    file.append([line(3)])
    file.close()
    assert numbers(path) == [1, 3]


WRITER = """
import json, sys
from runtime.captiond.outputs.lines_file import LinesFile
file = LinesFile(sys.argv[1], max_bytes=300_000, keep=2)
file.open()
number = 0
while True:
    file.append([json.dumps({"number": number + n, "text": "x" * 9000}).encode() + b"\\n" for n in range(8)])
    number += 8
    print(number, flush=True)
"""


def test_killed_in_the_middle_again_and_again_every_line_parses(tmp_path: Path) -> None:
    path, rng = tmp_path / "lines", random.Random(5)
    for _ in range(6):
        with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], cwd=ROOT, stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            for _ in range(rng.randint(1, 60)):
                writer.stdout.readline()
            os.kill(writer.pid, signal.SIGKILL)
        opened(path).close()
        for one in tmp_path.iterdir():
            numbers(one)


def test_the_lock_goes_with_the_process(tmp_path: Path) -> None:
    file = opened(tmp_path / "lines")
    with (tmp_path / "lines").open("rb") as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    file.close()
    with (tmp_path / "lines").open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
