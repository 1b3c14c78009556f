"""Trying kernels out: host arrays in, host arrays out, everything given back at the end. For the selftest and tests."""

from __future__ import annotations

import math
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from kernels.arrays import NUMPY, DeviceArray, DType, from_host_dtype, to_host_dtype
from kernels.driver.protocol import DeviceMemory
from kernels.loading import Kernels

UNWRITTEN = 0xFF  # NaN in f16, bf16 and f32, -1 in the integers


class Workbench:
    """A stream and the arrays made on it. ``with Workbench(kernels) as bench: ...`` frees them; not the kernels."""

    def __init__(self, kernels: Kernels) -> None:
        self.kernels = kernels
        self.stream = kernels.device.create_stream()
        self._allocations: list[DeviceMemory] = []

    def upload(self, values: npt.NDArray[Any], dtype: DType) -> DeviceArray:
        """Device copy of ``values`` converted to ``dtype`` (bf16: rounded to nearest). Structures: ``.view('u1')``."""
        host = to_host_dtype(np.asarray(values), dtype)
        array = self._allocate(host.shape, dtype)
        self.kernels.device.copy_in(array.ptr, host, self.stream)
        self.stream.synchronize()
        return array

    def empty(self, shape: tuple[int, ...], dtype: DType) -> DeviceArray:
        """A device array of 0xFF bytes, so that results which nobody wrote show."""
        array = self._allocate(shape, dtype)
        self.kernels.device.fill(array.ptr, UNWRITTEN, array.nbytes, self.stream)
        return array

    def download(self, array: DeviceArray) -> npt.NDArray[Any]:
        """Wait for the stream and return a host copy; bf16 widened to f32."""
        host = np.empty(array.shape, NUMPY[array.dtype])
        self.kernels.device.copy_out(host, array.ptr, self.stream)
        self.stream.synchronize()
        return from_host_dtype(host, array.dtype)

    def close(self) -> None:
        """Free every array and the stream; harmless when repeated."""
        while self._allocations:
            self._allocations.pop().free()
        self.stream.close()

    def __enter__(self) -> Workbench:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _allocate(self, shape: tuple[int, ...], dtype: DType) -> DeviceArray:
        memory = self.kernels.device.alloc(math.prod(shape) * np.dtype(NUMPY[dtype]).itemsize)
        self._allocations.append(memory)
        return DeviceArray(memory.ptr, tuple(shape), dtype, memory)
