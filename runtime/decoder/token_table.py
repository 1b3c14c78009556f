"""The token table on disk: single rows are read when they are needed, never the whole table."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.errors import BundleError, EngineError, PromptError

F32 = npt.NDArray[np.float32]
DTYPES = {"f16": "<f2", "f32": "<f4"}
COPY_HINT = "copy the bundle again"


class TokenTable:
    """Rows of a raw little-endian file [rows, hidden] of f16 or f32.

    Read with positioned reads rather than through a mapping: the kernel maps the surroundings of every row that is
    touched (183 MB of a 272 MB table were resident after 256 random rows), and a file that is cut short under a mapping
    kills the process. Raises BundleError when the file's size is not that of the shape.
    """

    def __init__(self, path: Path, dtype: str, shape: tuple[int, int]) -> None:
        self.rows, self.hidden = shape
        self._path, self._dtype = path, np.dtype(DTYPES[dtype])
        self._row_bytes = self.hidden * self._dtype.itemsize
        try:
            self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as problem:
            raise BundleError(f"{path}: cannot be opened: {problem.strerror}", hint=COPY_HINT) from problem
        self._open = True
        size, expected = os.fstat(self._file).st_size, self.rows * self._row_bytes
        if size != expected:
            self.close()
            raise BundleError(f"{path}: {size} bytes, {dtype} {list(shape)} takes {expected}", hint=COPY_HINT)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._file, 0, 0, os.POSIX_FADV_RANDOM)  # no reading ahead of single rows

    def lookup(self, token_ids: Sequence[int] | npt.NDArray[np.int64]) -> F32:
        """A new f32 [n, hidden]; PromptError for an id outside 0..rows−1, EngineError when the disk fails."""
        ids = np.asarray(token_ids, np.int64)
        if ids.ndim != 1:
            raise PromptError(f"token ids have the shape {list(ids.shape)}, expected one dimension")
        if ids.size and not 0 <= ids.min() <= ids.max() < self.rows:
            wrong = ids[(ids < 0) | (ids >= self.rows)][0]
            message = f"token id {wrong} is outside the table of {self.rows} rows"
            raise PromptError(message, hint="use the tokenizer of this bundle")
        found = b"".join(self._row(index) for index in ids.tolist())
        return np.frombuffer(found, self._dtype).reshape(len(ids), self.hidden).astype(np.float32)

    @property
    def dtype(self) -> np.dtype[Any]:
        """What the file's values are."""
        return self._dtype

    def rows_between(self, begin: int, end: int) -> npt.NDArray[Any]:
        """Rows ``begin:end`` as they are stored; EngineError when the disk fails."""
        what = f"rows {begin}..{end}"
        return np.frombuffer(self._read(begin, end - begin, what), self._dtype).reshape(end - begin, self.hidden)

    def close(self) -> None:
        """Closes the file; harmless when repeated."""
        if self._open:
            self._open = False
            os.close(self._file)

    def _row(self, index: int) -> bytes:
        return self._read(index, 1, f"row {index}")

    def _read(self, first: int, count: int, what: str) -> bytes:
        wanted = count * self._row_bytes
        try:
            found = os.pread(self._file, wanted, first * self._row_bytes)
        except OSError as problem:
            raise EngineError(f"{self._path}: reading {what} failed: {problem.strerror}") from problem
        if len(found) != wanted:
            raise EngineError(f"{self._path}: ends inside {what}", hint=COPY_HINT)
        return found
