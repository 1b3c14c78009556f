"""What a quantisation has done so far, in a folder beside its result, so that a killed run goes on. Torch-free.

``<out>.partial`` holds ``journal.json`` (whose work this is), hidden states, and finished layers. A thing is written
under a temporary name, flushed and renamed; the file that stands for a finished step comes last.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.bundle.write import flush
from runtime.errors import OutputError
from runtime.strict_json import read_json

VERSION = 1
_NAME = "journal.json"
_MAX_BYTES = 16 << 20
_DAMAGED = "remove the folder to start anew"


def partial_folder(out: Path) -> Path:
    """Where the work on ``out`` lies until it is done."""
    return out.parent / f"{out.name}.partial"


class Journal:
    """The folder of one quantisation; :func:`open_journal` makes it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def has(self, step: str) -> bool:
        """Whether a step was finished."""
        return (self.folder / f"{step}.json").is_file()

    def record(self, step: str) -> dict[str, Any]:
        """What was noted when the step was finished."""
        path = self.folder / f"{step}.json"
        value = read_json(path, max_bytes=_MAX_BYTES, error=OutputError, hint=_DAMAGED)
        if not isinstance(value, dict):
            raise OutputError(f"{path}: expected an object", hint=_DAMAGED)
        return value

    def finish(self, step: str, record: Mapping[str, Any]) -> None:
        """Notes a step as finished; what it wrote before is on the disk by then."""
        text = json.dumps(record, indent=1, sort_keys=True) + "\n"
        self.write(f"{step}.json", lambda path: _write_text(path, text))

    def write(self, name: str, fill: Callable[[Path], None]) -> Path:
        """Lets ``fill`` write a file, which appears under its name when it is complete."""
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        temporary = path.with_name(f".{path.name}.writing")
        fill(temporary)
        flush(temporary)
        temporary.replace(path)
        return path

    def write_array(self, name: str, array: npt.NDArray[Any]) -> None:
        """An array as ``name``.npy."""
        self.write(f"{name}.npy", lambda path: _write_array(path, array))

    def read_array(self, name: str) -> npt.NDArray[Any]:
        """The array that was written under ``name``."""
        path = self.folder / f"{name}.npy"
        try:
            array: npt.NDArray[Any] = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as problem:
            raise OutputError(f"{path}: cannot be read: {problem}", hint=_DAMAGED) from problem
        return array

    def has_array(self, name: str) -> bool:
        """Whether ``name`` was written."""
        return (self.folder / f"{name}.npy").is_file()

    def drop(self, name: str) -> None:
        """Removes a folder of files that no later step reads."""
        shutil.rmtree(self.folder / name, ignore_errors=True)


@contextmanager
def open_journal(out: Path, describes: Mapping[str, Any], force: bool) -> Iterator[Journal]:
    """The journal for ``out``: a new one, or the one that an interrupted run with the same ``describes`` left.

    Work of another checkpoint, calibration set or setting is refused by the name of what differs (OutputError), or
    dropped with ``force``. One process at a time holds it.
    """
    folder = partial_folder(out)
    if force and (folder / _NAME).is_file() and _difference(folder, describes):
        with _locked(folder):
            shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        journal = Journal(folder)
        if all(path.name.startswith(".") for path in folder.iterdir()):  # nothing, or killed before the first step
            journal.finish(_NAME.removesuffix(".json"), {"version": VERSION, **describes})
        different = _difference(folder, describes)
        if different:
            raise OutputError(
                f"{folder}: an interrupted run of something else lies there: {different}",
                hint="give the same command as then to go on, or --force to drop it",
            )
        yield journal


def _difference(folder: Path, describes: Mapping[str, Any]) -> str | None:
    """The first thing in which a folder's journal is not ``describes``; None when they are the same."""
    if not (folder / _NAME).is_file():
        return f"there is no {_NAME}"
    found = Journal(folder).record(_NAME.removesuffix(".json"))
    wanted = {"version": VERSION, **json.loads(json.dumps(describes))}
    for key in [*wanted, *sorted(set(found) - set(wanted))]:
        if found.get(key) != wanted.get(key):
            return f"its {key} is {_short(found.get(key))}, not {_short(wanted.get(key))}"
    return None


def _short(value: Any) -> str:
    return f"{value[:12]}…" if isinstance(value, str) and len(value) == 64 else repr(value)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as problem:
            raise OutputError(f"{folder}: another process is working there", hint="wait for it") from problem
        yield
    finally:
        os.close(handle)


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _write_array(path: Path, array: npt.NDArray[Any]) -> None:
    with path.open("wb") as file:
        np.save(file, array, allow_pickle=False)
