"""Traced graphs that are kept: in a checkpoint's ``onnx/`` folder, in the cache, in an older bundle. Torch-free.

They are used instead of tracing when their key matches: the SHA-256 over vision weights, configurations and the code
that traces. ``traced.json`` beside them holds key, hashes and measured errors.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from export.vision.names import GRAPH_FILES, PROJECTOR_FILE, TOWER_FILE
from runtime.bundle import sha256_file
from runtime.errors import ExportError, OutputError
from runtime.strict_json import read_json

FOLDER, RECORD = "onnx", "traced.json"
_MAX_RECORD_BYTES = 64 << 10
_COPY_BYTES = 4 << 20
_HINT = "trace again: python -m export.build_engines <checkpoint> --trace --save-traced"


@dataclass(frozen=True, slots=True)
class TracedGraphs:
    """Two graphs on disk and how far they are from torch (largest absolute difference, f32)."""

    folder: Path
    tower_max_error: float
    projector_max_error: float
    error_limit: float

    @property
    def files(self) -> tuple[str, ...]:
        """The names of the graphs and of the files with their weights, where they have any."""
        return tuple(name for name in GRAPH_FILES if (self.folder / name).is_file())


def read_traced(folder: Path, key: str) -> TracedGraphs | None:
    """The graphs in ``folder`` when they are there and were made for ``key``. Raises ExportError for damaged ones."""
    path = folder / RECORD
    if not path.is_file():
        return None
    record = read_json(path, max_bytes=_MAX_RECORD_BYTES, error=ExportError, hint=_HINT)
    if not isinstance(record, dict) or record.get("key") != key:
        return None
    files = record.get("files")
    expected = files if isinstance(files, dict) else {}
    for name in GRAPH_FILES:
        found = sha256_file(folder / name) if (folder / name).is_file() else None
        if found != expected.get(name) or (found is None and name in (TOWER_FILE, PROJECTOR_FILE)):
            message = f"SHA-256 is {found or 'missing'}, {RECORD} says {expected.get(name)}"
            raise ExportError(f"{folder / name}: {message}", hint=_HINT)
    numbers = [record.get(name) for name in ("tower_max_error", "projector_max_error", "error_limit")]
    if not all(isinstance(number, (int, float)) for number in numbers):
        raise ExportError(f"{path}: measured errors are {numbers}, expected numbers", hint=_HINT)
    tower, projector, limit = (float(str(number)) for number in numbers)
    return TracedGraphs(folder, tower, projector, limit)


def write_traced(graphs: TracedGraphs, folder: Path, key: str) -> TracedGraphs:
    """Copies graphs into ``folder`` and writes their record last, so that a half-written folder has none.

    Raises OutputError when the folder cannot be written.
    """
    record: dict[str, Any] = {
        "key": key,
        "files": {name: sha256_file(graphs.folder / name) for name in graphs.files},
        "tower_max_error": graphs.tower_max_error,
        "projector_max_error": graphs.projector_max_error,
        "error_limit": graphs.error_limit,
    }
    try:
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        (folder / RECORD).unlink(missing_ok=True)
        for name in GRAPH_FILES:
            if name in record["files"]:
                with (graphs.folder / name).open("rb") as source:
                    _replace(folder / name, source)
            else:
                (folder / name).unlink(missing_ok=True)
        _replace(folder / RECORD, io.BytesIO((json.dumps(record, indent=2) + "\n").encode()))
    except OSError as problem:
        raise OutputError(
            f"{folder}: traced graphs cannot be kept: {problem.strerror}", hint="check the disk and its permissions"
        ) from problem
    return TracedGraphs(folder, graphs.tower_max_error, graphs.projector_max_error, graphs.error_limit)


def ours_alone(folder: Path) -> bool:
    """Whether nobody else could have put graphs into a cache folder."""
    try:
        state = folder.stat()
    except OSError:
        return False
    return state.st_uid == os.geteuid() and not state.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _replace(path: Path, source: IO[bytes]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            shutil.copyfileobj(source, file, _COPY_BYTES)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def link_or_copy(source: Path, target: Path) -> None:
    """Puts a file that will not change any more into a new place, without a second copy where the disk allows that."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
