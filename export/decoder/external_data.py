"""Files that are written front to back while the weights stream by, and the one external file of an ONNX graph."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import onnx

from runtime.errors import OutputError

SMALL_ALIGNMENT = 64
PAGE_ALIGNMENT = 4096  # tensors of a page and more begin on one, so that a reader can map each by itself
DISK_HINT = "free some space or choose another --out"


class DataFile:
    """A file written sequentially and flushed to disk at the end; every failure of the disk is an OutputError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        try:
            self._file: BinaryIO = path.open("xb", buffering=1 << 20)
        except OSError as problem:
            raise self._error(problem) from problem

    def __enter__(self) -> DataFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._file.flush()
                os.fsync(self._file.fileno())
            self._file.close()
        except OSError as problem:
            if kind is None:
                raise self._error(problem) from problem

    def write(self, array: npt.NDArray[Any]) -> None:
        """Appends an array's bytes, row-major."""
        self.write_bytes(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)

    def write_bytes(self, data: bytes | memoryview) -> None:
        """Appends bytes."""
        try:
            self._file.write(data)
        except OSError as problem:
            raise self._error(problem) from problem
        self.size += len(data)

    def overwrite(self, offset: int, data: bytes) -> None:
        """Writes over bytes that are there already."""
        if not 0 <= offset <= offset + len(data) <= self.size:
            raise ValueError(f"bytes {offset} to {offset + len(data)} of {self.size}")
        try:
            self._file.seek(offset)
            self._file.write(data)
            self._file.seek(self.size)
        except OSError as problem:
            raise self._error(problem) from problem

    def align(self, alignment: int) -> None:
        """Pads with zeros up to a multiple of ``alignment``."""
        self.write(np.zeros(-self.size % alignment, np.uint8))

    def _error(self, problem: OSError) -> OutputError:
        return OutputError(f"{self.path}: cannot be written: {problem.strerror or problem}", hint=DISK_HINT)


class ExternalData:
    """Collects the initialisers of a graph whose bytes go to a :class:`DataFile`."""

    def __init__(self, file: DataFile) -> None:
        self._file = file
        self.initializers: list[onnx.TensorProto] = []

    def add(self, name: str, array: npt.NDArray[Any]) -> str:
        """Appends a whole initialiser and gives its name back."""
        return self.add_blocks(name, array.dtype, array.shape, array.nbytes, [array])

    def add_blocks(
        self,
        name: str,
        dtype: np.dtype[Any],
        shape: tuple[int, ...],
        nbytes: int,
        blocks: Iterable[npt.NDArray[Any]],
    ) -> str:
        """Appends an initialiser from blocks of rows as they come; ``nbytes`` is what they must add up to."""
        self._file.align(PAGE_ALIGNMENT if nbytes >= PAGE_ALIGNMENT else SMALL_ALIGNMENT)
        offset = self._file.size
        for block in blocks:
            self._file.write(block)
        written = self._file.size - offset
        if written != nbytes:
            raise ValueError(f"{name}: {written} bytes written, {nbytes} announced")
        self.initializers.append(_external_tensor(name, dtype, shape, self._file.path.name, offset, nbytes))
        return name


def _external_tensor(
    name: str, dtype: np.dtype[Any], shape: tuple[int, ...], location: str, offset: int, length: int
) -> onnx.TensorProto:
    tensor = onnx.TensorProto(
        name=name,
        data_type=onnx.helper.np_dtype_to_tensor_dtype(dtype),
        dims=shape,
        data_location=onnx.TensorProto.EXTERNAL,
    )
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)
    return tensor
