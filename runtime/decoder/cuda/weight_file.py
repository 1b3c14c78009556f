"""Reads ``decoder/t16.safetensors``: what it must hold is known from the manifest, and checked before it is read."""

from __future__ import annotations

import os

import numpy as np
import numpy.typing as npt

from runtime.bundle.tensor_header import read_exactly, read_header
from runtime.decoder.cuda.shape import CudaDecoderFiles, TensorShape
from runtime.errors import BundleError

FORMAT, VERSION = "t16", "1"
DTYPES = {"u32": "U32", "f16": "F16", "u8": "U8", "f32": "F32"}
HINT = "build it again: python -m export.build_engines CHECKPOINT --decoder both"


class WeightFile:
    """The open file. ``biases``: names of those that it has. Raises BundleError that names the file and the tensor."""

    def __init__(self, files: CudaDecoderFiles) -> None:
        self._path = files.weights
        try:
            self._file = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as problem:
            raise BundleError(f"{self._path}: cannot be opened: {problem.strerror}", hint=HINT) from problem
        self._open = True
        try:
            header = read_header(self._file, self._path, error=BundleError, hint=HINT)
            self._tensors = header.tensors
            self._check_metadata(files, dict(header.metadata))
            self.biases = tuple(name for name in files.biases() if name in self._tensors)
            self._check_tensors(files.tensors(), files.biases())
        except BaseException:
            self.close()
            raise

    def read(self, name: str, offset: int, target: npt.NDArray[np.uint8]) -> None:
        """Fills ``target`` with the tensor's bytes from ``offset`` on."""
        begin = self._tensors[name].begin + offset
        read_exactly(self._file, target.data, begin, self._path, name, error=BundleError, hint=HINT)

    def close(self) -> None:
        """Close it; harmless when repeated."""
        if self._open:
            self._open = False
            os.close(self._file)

    def _check_metadata(self, files: CudaDecoderFiles, found: dict[str, str]) -> None:
        wanted = {
            "format": FORMAT,
            "version": VERSION,
            "group_size": str(files.group_size),
            "activations": files.activations,
            "digest": files.digest,
        }
        for key, value in wanted.items():
            if found.get(key) != value:
                message = f"{self._path}: {key} is {found.get(key)!r}, by the manifest {value!r}"
                raise BundleError(message, hint=HINT)

    def _check_tensors(self, needed: dict[str, TensorShape], optional: dict[str, TensorShape]) -> None:
        for name in sorted(needed.keys() | self._tensors.keys()):
            dtype, shape = needed.get(name) or optional.get(name) or (None, None)
            info = self._tensors.get(name)
            wanted = None if dtype is None else (DTYPES[dtype], shape)
            found = None if info is None else (info.dtype, info.shape)
            if wanted != found:
                raise BundleError(f"{self._path}: {name} is {_text(found)}, by the manifest {_text(wanted)}", hint=HINT)


def _text(tensor: tuple[str, tuple[int, ...] | None] | None) -> str:
    return "absent" if tensor is None else f"{tensor[0]} {list(tensor[1] or ())}"
