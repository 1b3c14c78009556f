"""The header of a safetensors file, checked against the file's size before anything is read by it.

Used for packed weights at run time and for checkpoints at export. Format: an u64 header length, a JSON header, the
data. Nothing is mapped: a file that is cut short while it is read gives an error instead of a bus error.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.errors import VlmError
from runtime.strict_json import parse_json

MAX_HEADER_BYTES = 100_000_000  # the limit of the format's reference implementation
MAX_TENSORS = 100_000
MAX_RANK = 8
MAX_COUNT = 1 << 48
ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "BOOL": 1} | {
    f"{sign}{8 * size}": size for sign in "IU" for size in (1, 2, 4, 8)
}
READ_BYTES = 1 << 30  # what one system call reads at most


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where one tensor lies: ``begin`` and ``end`` are byte offsets in the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """What a file says of its tensors, and the strings that stand beside them."""

    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]


def read_header(file: int, path: Path, *, error: type[VlmError], hint: str) -> TensorHeader:
    """Parses and checks the header of an open file; the file's position does not change.

    Raises ``error`` that names the path and what is wrong: too short, too large, not JSON, a tensor whose size is not
    that of its shape, holes, overlaps, bytes that belong to nothing.
    """
    size = os.fstat(file).st_size
    if size < 8:
        raise error(f"{path}: {size} bytes are too few for a safetensors file", hint=hint)
    start = bytearray(8)
    read_exactly(file, memoryview(start), 0, path, "the header", error=error, hint=hint)
    length, limit = int.from_bytes(start, "little"), min(MAX_HEADER_BYTES, size - 8)
    if length > limit:
        raise error(f"{path}: header of {length} bytes, at most {limit} are possible", hint=hint)
    raw = bytearray(length)
    read_exactly(file, memoryview(raw), 8, path, "the header", error=error, hint=hint)
    header = parse_json(bytes(raw), name=f"{path}: header", error=error, hint=hint)
    if not isinstance(header, dict) or len(header) > MAX_TENSORS:
        raise error(f"{path}: no table of at most {MAX_TENSORS} tensors", hint=hint)
    found = header.pop("__metadata__", None)
    metadata = found if isinstance(found, dict) else {}
    try:
        tensors = {name: _tensor_info(name, entry, 8 + length) for name, entry in header.items()}
        _check_extent(tensors, 8 + length, size)
    except ValueError as problem:
        raise error(f"{path}: {problem}", hint=hint) from problem
    return TensorHeader(tensors, {key: value for key, value in metadata.items() if isinstance(value, str)})


def read_exactly(
    file: int, target: memoryview, offset: int, path: Path, what: str, *, error: type[VlmError], hint: str
) -> None:
    """Fills ``target`` (bytes) from ``offset`` of an open file; ``error`` when the file ends or the disk fails."""
    done = 0
    while done < len(target):
        try:
            got = os.preadv(file, [target[done : done + READ_BYTES]], offset + done)
        except OSError as problem:
            raise error(f"{path}: reading {what} failed: {problem.strerror}", hint=hint) from problem
        if not got:
            raise error(f"{path}: ends inside {what}", hint=hint)
        done += got


def _tensor_info(name: str, entry: Any, base: int) -> TensorInfo:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name}: is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not _counts(shape, MAX_RANK) or not _counts(offsets, 2) or len(offsets) != 2 or not isinstance(dtype, str):
        raise ValueError(f"{name}: wrong dtype, shape or data_offsets")
    item = ITEM_BYTES.get(dtype)
    if item is not None and math.prod(shape) * item != offsets[1] - offsets[0]:
        raise ValueError(f"{name}: {dtype} {shape} does not take {offsets[1] - offsets[0]} bytes")
    return TensorInfo(dtype, tuple(shape), base + offsets[0], base + offsets[1])


def _check_extent(tensors: Mapping[str, TensorInfo], begin: int, size: int) -> None:
    """The tensors fill the rest of the file without holes or overlaps, as the format demands."""
    at = begin
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if info.begin != at:
            raise ValueError(f"{name} begins at byte {info.begin}, expected {at}")
        at = info.end
    if at != size:
        state = "is cut short" if at > size else "has bytes that belong to no tensor"
        raise ValueError(f"{state}: {size} bytes, the header describes {at}")


def _counts(values: Any, longest: int) -> bool:
    """Whether it is a list of at most ``longest`` integers that are not negative (and not bool)."""
    return (
        isinstance(values, list)
        and len(values) <= longest
        and all(type(value) is int and 0 <= value < MAX_COUNT for value in values)
    )
