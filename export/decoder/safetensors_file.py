"""Reads rows of tensors out of one safetensors file, with positioned reads and a bounded amount of memory.

The file is never mapped: a checkpoint that is cut short while it is read gives an error instead of a bus error, and the
pages that were read do not count as this process's memory. Format: an u64 header length, a JSON header, the data.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.bundle.tensor_header import read_exactly, read_header
from runtime.errors import ExportError

F32 = npt.NDArray[np.float32]

ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8}
OTHER_DTYPES = {"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1}
INTEGERS = {"I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1"}
COPY_HINT = "copy or download the checkpoint again"


class SafetensorsFile:
    """One open safetensors file whose header was validated against its size. A context manager."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = path.open("rb", buffering=0)
        except OSError as problem:
            raise ExportError(f"{path}: cannot be opened: {problem.strerror or problem}", hint=COPY_HINT) from problem
        try:
            header = read_header(self._file.fileno(), path, error=ExportError, hint=COPY_HINT)
        except BaseException:
            self._file.close()
            raise
        self.tensors = header.tensors

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
        read_exactly(self._file.fileno(), raw.data, offset, self.path, what, error=ExportError, hint=COPY_HINT)
        return raw


def to_f32(raw: npt.NDArray[np.uint8], dtype: str) -> F32:
    """Bytes of little-endian F32, F16, BF16 or F64 values as f32; BF16 is the upper half of an f32."""
    if dtype == "BF16":
        return (raw.view("<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)
    if dtype == "F32":
        return raw.view("<f4").astype(np.float32, copy=False)
    with np.errstate(over="ignore"):  # the caller refuses infinities by name
        return raw.view({"F16": "<f2", "F64": "<f8"}[dtype]).astype(np.float32)
