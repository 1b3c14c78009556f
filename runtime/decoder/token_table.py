"""The token table on disk: mapped, never read as a whole; rows are copied out as f32."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.errors import BundleError, PromptError

F32 = npt.NDArray[np.float32]
DTYPES = {"f16": "<f2", "f32": "<f4"}


class TokenTable:
    """Rows of a raw little-endian file [rows, hidden] of f16 or f32; BundleError when its size is another."""

    def __init__(self, path: Path, dtype: str, shape: tuple[int, int]) -> None:
        stored = np.dtype(DTYPES[dtype])
        expected = shape[0] * shape[1] * stored.itemsize
        try:
            with path.open("rb") as file:
                self._map: mmap.mmap | None = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as problem:  # ValueError: an empty file
            raise BundleError(f"{path}: cannot be mapped: {problem}", hint="copy the bundle again") from problem
        if len(self._map) != expected:
            found = len(self._map)
            self._map.close()
            message = f"{path}: {found} bytes, {dtype} {list(shape)} takes {expected}"
            raise BundleError(message, hint="copy the bundle again")
        if hasattr(mmap, "MADV_RANDOM"):
            self._map.madvise(mmap.MADV_RANDOM)  # a row is a page or two; reading ahead would fill memory with others
        self.rows, self.hidden = shape
        self._table: npt.NDArray[Any] = np.frombuffer(self._map, stored).reshape(shape)

    def lookup(self, token_ids: Sequence[int] | npt.NDArray[np.int64]) -> F32:
        """A new f32 [n, hidden]; PromptError for an id outside 0..rows−1."""
        ids = np.asarray(token_ids, np.int64)
        if ids.ndim != 1:
            raise PromptError(f"token ids have the shape {list(ids.shape)}, expected one dimension")
        if ids.size and not 0 <= ids.min() <= ids.max() < self.rows:
            wrong = ids[(ids < 0) | (ids >= self.rows)][0]
            message = f"token id {wrong} is outside the table of {self.rows} rows"
            raise PromptError(message, hint="use the tokenizer of this bundle")
        rows: F32 = self._table[ids].astype(np.float32)
        return rows

    def close(self) -> None:
        """Unmaps the file; harmless when repeated."""
        if self._map is not None:
            del self._table
            self._map.close()
            self._map = None
