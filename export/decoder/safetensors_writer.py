"""Writes a safetensors file front to back while its tensors stream by; the header is known before them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from export.decoder.external_data import DataFile

DATA_ALIGNMENT = 64  # of the first tensor; the format allows no holes between tensors
NUMPY: Mapping[str, np.dtype[Any]] = MappingProxyType(
    {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "U32": np.dtype("<u4"), "U8": np.dtype("u1")}
)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What the header says of a tensor; ``dtype`` as the format calls it."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of its values."""
        return math.prod(self.shape) * NUMPY[self.dtype].itemsize


class SafetensorsWriter:
    """Appends announced tensors in their order, each whole or in parts, to an empty :class:`DataFile`.

    ``metadata``: texts in ASCII; one that is only known at the end is announced with its length and put in by
    :meth:`replace_metadata`. A tensor out of order, of another dtype, or with too many or too few values is a
    ValueError.
    """

    def __init__(self, file: DataFile, tensors: Mapping[str, TensorSpec], metadata: Mapping[str, str]) -> None:
        self._file, self._tensors, self._metadata = file, tensors, dict(metadata)
        self._waiting = iter(tensors)
        self._name, self._left = "", 0
        file.write_bytes(self._head())
        self._next()

    def append(self, name: str, values: npt.NDArray[Any]) -> None:
        """The next values of the tensor ``name``, row-major."""
        if name != self._name:
            raise ValueError(f"{name} is written where {self._name or 'the end'} is expected")
        dtype = NUMPY[self._tensors[name].dtype]
        if values.dtype != dtype or values.nbytes > self._left:
            raise ValueError(f"{name}: {values.nbytes} bytes of {values.dtype}, expected {self._left} of {dtype}")
        self._file.write(values)
        self._left -= values.nbytes
        if not self._left:
            self._next()

    def replace_metadata(self, key: str, text: str) -> None:
        """Puts in a text of the announced length."""
        if len(text) != len(self._metadata[key]):
            raise ValueError(f"{key}: {len(text)} characters, {len(self._metadata[key])} were announced")
        self._metadata[key] = text
        self._file.overwrite(0, self._head())

    def finish(self) -> None:
        """ValueError when a tensor is incomplete."""
        if self._name:
            raise ValueError(f"{self._name}: {self._left} bytes were not written")

    def _next(self) -> None:
        self._name = next(self._waiting, "")
        self._left = self._tensors[self._name].nbytes if self._name else 0

    def _head(self) -> bytes:
        header: dict[str, Any] = {"__metadata__": self._metadata}
        at = 0
        for name, spec in self._tensors.items():
            end = at + spec.nbytes
            header[name] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [at, end]}
            at = end
        text = json.dumps(header, separators=(",", ":")).encode("ascii")
        text += b" " * (-(8 + len(text)) % DATA_ALIGNMENT)
        return len(text).to_bytes(8, "little") + text
