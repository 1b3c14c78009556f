"""Reads rows of tensors out of one safetensors file, with positioned reads and a bounded amount of memory.

The file is never mapped: a checkpoint that is cut short while it is read gives an error instead of a bus error, and the
pages that were read do not count as this process's memory. Format: an u64 header length, a JSON header, the data.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.bundle.strict_json import parse_json
from runtime.errors import ExportError

F32 = npt.NDArray[np.float32]

MAX_HEADER_BYTES = 100_000_000  # the limit of the format's reference implementation
MAX_TENSORS = 100_000
MAX_RANK = 8
ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8}
OTHER_DTYPES = {"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1}
INTEGERS = {"I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1"}
COPY_HINT = "copy or download the checkpoint again"


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where one tensor lies: ``begin`` and ``end`` are byte offsets in the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class SafetensorsFile:
    """One open safetensors file whose header was validated against its size. A context manager."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = path.open("rb", buffering=0)
        except OSError as problem:
            raise ExportError(f"{path}: cannot be opened: {problem.strerror or problem}", hint=COPY_HINT) from problem
        try:
            self.tensors = self._read_header()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> SafetensorsFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file; reading after it is an error of the caller."""
        self._file.close()

    def read_rows(self, name: str, begin: int, end: int) -> F32:
        """Rows ``begin:end`` of a tensor of floats as a new f32 array; ExportError when the file is cut short."""
        info = self.tensors[name]
        if info.dtype not in ITEM_BYTES:
            known = ", ".join(ITEM_BYTES)
            raise ExportError(f"{self.path}: {name} is {info.dtype}, expected {known}", hint="convert it to BF16")
        rows = info.shape[0] if info.shape else 1
        if not 0 <= begin <= end <= rows:
            raise ValueError(f"rows {begin}:{end} of {name} with {rows} rows")
        row_bytes = (info.end - info.begin) // rows if rows else 0
        raw = self._read(info.begin + begin * row_bytes, (end - begin) * row_bytes, name)
        return to_f32(raw, info.dtype).reshape(end - begin, *info.shape[1:])

    def read_array(self, name: str) -> npt.NDArray[Any]:
        """A whole tensor: integers as they are, floats as f32; ExportError for another dtype."""
        info = self.tensors[name]
        if info.dtype in ITEM_BYTES:
            return to_f32(self._read(info.begin, info.end - info.begin, name), info.dtype).reshape(info.shape)
        if info.dtype not in INTEGERS:
            known = ", ".join((*ITEM_BYTES, *INTEGERS))
            raise ExportError(f"{self.path}: {name} is {info.dtype}, expected one of {known}", hint=COPY_HINT)
        return self._read(info.begin, info.end - info.begin, name).view(INTEGERS[info.dtype]).reshape(info.shape)

    def iter_rows(self, name: str, block_bytes: int) -> Iterator[F32]:
        """All rows of a tensor in blocks whose f32 form takes about ``block_bytes``, at least one row each."""
        info = self.tensors[name]
        rows = info.shape[0] if info.shape else 1
        step = max(1, block_bytes // max(1, 4 * math.prod(info.shape[1:])))
        for begin in range(0, rows, step):
            yield self.read_rows(name, begin, min(begin + step, rows))

    def _read(self, offset: int, count: int, what: str) -> npt.NDArray[np.uint8]:
        raw = np.empty(count, np.uint8)
        view, done = raw.data, 0
        while done < count:
            try:
                got = os.preadv(self._file.fileno(), [view[done : done + (1 << 30)]], offset + done)
            except OSError as problem:
                message = f"{self.path}: reading {what} failed: {problem.strerror}"
                raise ExportError(message, hint=COPY_HINT) from problem
            if not got:
                raise ExportError(f"{self.path}: ends inside {what}", hint=COPY_HINT)
            done += got
        return raw

    def _read_header(self) -> dict[str, TensorInfo]:
        size = os.fstat(self._file.fileno()).st_size
        if size < 8:
            raise ExportError(f"{self.path}: {size} bytes are too few for a safetensors file", hint=COPY_HINT)
        length = int.from_bytes(self._read(0, 8, "the header").tobytes(), "little")
        if length > min(MAX_HEADER_BYTES, size - 8):
            limit = min(MAX_HEADER_BYTES, size - 8)
            raise ExportError(f"{self.path}: header of {length} bytes, at most {limit} are possible", hint=COPY_HINT)
        raw = self._read(8, length, "the header").tobytes()
        header = parse_json(raw, name=f"{self.path}: header", error=ExportError, hint=COPY_HINT)
        if not isinstance(header, dict) or len(header) > MAX_TENSORS:
            raise ExportError(f"{self.path}: no table of at most {MAX_TENSORS} tensors", hint=COPY_HINT)
        header.pop("__metadata__", None)
        tensors = {name: _tensor_info(f"{self.path}: {name}", entry, 8 + length) for name, entry in header.items()}
        self._check_extent(tensors, 8 + length, size)
        return tensors

    def _check_extent(self, tensors: dict[str, TensorInfo], begin: int, size: int) -> None:
        """The tensors fill the rest of the file without holes or overlaps, as the format demands."""
        at = begin
        for name, info in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
            if info.begin != at:
                raise ExportError(f"{self.path}: {name} begins at byte {info.begin}, expected {at}", hint=COPY_HINT)
            at = info.end
        if at != size:
            state = "is cut short" if at > size else "has bytes that belong to no tensor"
            raise ExportError(f"{self.path}: {state}: {size} bytes, the header describes {at}", hint=COPY_HINT)


def to_f32(raw: npt.NDArray[np.uint8], dtype: str) -> F32:
    """Bytes of little-endian F32, F16, BF16 or F64 values as f32; BF16 is the upper half of an f32."""
    if dtype == "BF16":
        return (raw.view("<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)
    if dtype == "F32":
        return raw.view("<f4").astype(np.float32, copy=False)
    with np.errstate(over="ignore"):  # the caller refuses infinities by name
        return raw.view({"F16": "<f2", "F64": "<f8"}[dtype]).astype(np.float32)


def _tensor_info(where: str, entry: Any, base: int) -> TensorInfo:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ExportError(f"{where}: is not described by dtype, shape and data_offsets", hint=COPY_HINT)
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not _counts(shape, MAX_RANK) or not _counts(offsets, 2) or len(offsets) != 2 or not isinstance(dtype, str):
        raise ExportError(f"{where}: wrong dtype, shape or data_offsets", hint=COPY_HINT)
    item = ITEM_BYTES.get(dtype, OTHER_DTYPES.get(dtype))
    if item is not None and math.prod(shape) * item != offsets[1] - offsets[0]:
        raise ExportError(f"{where}: {dtype} {shape} does not take {offsets[1] - offsets[0]} bytes", hint=COPY_HINT)
    return TensorInfo(dtype, tuple(shape), base + offsets[0], base + offsets[1])


def _counts(values: Any, longest: int) -> bool:
    """Whether it is a list of at most ``longest`` integers that are not negative (and not bool)."""
    return (
        isinstance(values, list)
        and len(values) <= longest
        and all(type(value) is int and 0 <= value < 1 << 48 for value in values)
    )
