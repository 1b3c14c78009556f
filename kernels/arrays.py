"""Arrays in device memory as plain values: a pointer, a shape, a dtype, and who keeps the memory alive.

numpy has no bfloat16: on the host such values are u16 with the same bits (:func:`to_bf16`, :func:`from_bf16`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from kernels.errors import ArrayError

DType = Literal["f16", "bf16", "f32", "i8", "u8", "i32", "u32", "u64"]
Activation = Literal["f16", "bf16"]
NUMPY: dict[str, type[np.generic]] = {
    "f16": np.float16,
    "bf16": np.uint16,
    "f32": np.float32,
    "i8": np.int8,
    "u8": np.uint8,
    "i32": np.int32,
    "u32": np.uint32,
    "u64": np.uint64,
}
ALIGNMENT = 16  # bytes: what a vector load of the kernels takes


@dataclass(frozen=True, slots=True)
class DeviceArray:
    """``shape`` values of ``dtype`` at the device address ``ptr``, contiguous in row-major order.

    owner: whatever must stay alive while the array is used.
    """

    ptr: int
    shape: tuple[int, ...]
    dtype: DType
    owner: object = None

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def itemsize(self) -> int:
        """Bytes of one value."""
        return np.dtype(NUMPY[self.dtype]).itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of all values."""
        return self.size * self.itemsize

    def rows(self, start: int, stop: int) -> DeviceArray:
        """A part along the first dimension, sharing the memory. ArrayError outside 0..shape[0]."""
        if not 0 <= start <= stop <= self.shape[0]:
            raise ArrayError(f"rows {start}..{stop} of an array of {self.shape[0]} rows")
        step = self.nbytes // self.shape[0] if self.shape[0] else 0
        return DeviceArray(self.ptr + start * step, (stop - start, *self.shape[1:]), self.dtype, self.owner)

    def reshape(self, *shape: int) -> DeviceArray:
        """The same memory under another shape of the same size."""
        if math.prod(shape) != self.size:
            raise ArrayError(f"an array of shape {self.shape} cannot be viewed as {shape}")
        return DeviceArray(self.ptr, tuple(shape), self.dtype, self.owner)


def check_array(
    name: str,
    array: DeviceArray,
    dtypes: DType | tuple[DType, ...],
    shape: tuple[int | None, ...],
    *,
    alignment: int = ALIGNMENT,
) -> None:
    """Refuse what a kernel cannot take; None in ``shape`` is any length of at least 1. Raises ArrayError."""
    allowed = (dtypes,) if isinstance(dtypes, str) else dtypes
    if array.dtype not in allowed:
        raise ArrayError(f"{name} is {array.dtype}, expected {' or '.join(allowed)}")
    fits = len(array.shape) == len(shape) and all(
        have == want if want is not None else have >= 1 for have, want in zip(array.shape, shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if want is None else str(want) for want in shape)
        raise ArrayError(f"{name} has the shape {list(array.shape)}, expected [{wanted}]")
    if array.ptr == 0:
        raise ArrayError(f"{name} is a null pointer")
    if array.ptr % alignment:
        raise ArrayError(f"{name} lies at {array.ptr:#x}, which is not a multiple of {alignment} bytes")


def to_bf16(values: npt.NDArray[Any]) -> npt.NDArray[np.uint16]:
    """f32 values rounded to the nearest bfloat16 (ties to even), as bits; NaN stays NaN."""
    wide = np.ascontiguousarray(values, np.float32)
    bits = wide.view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(wide), np.uint16(0x7FC0), rounded)


def from_bf16(bits: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """The f32 values of bfloat16 bits, exactly."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def to_host_dtype(values: npt.NDArray[Any], dtype: DType) -> npt.NDArray[Any]:
    """Host values in the form that a device array of ``dtype`` has (bf16 as bits)."""
    if dtype == "bf16":
        return to_bf16(values)
    return np.ascontiguousarray(values, NUMPY[dtype])


def from_host_dtype(values: npt.NDArray[Any], dtype: DType) -> npt.NDArray[Any]:
    """The inverse: floating values of bf16 bits, anything else as it is."""
    return from_bf16(values) if dtype == "bf16" else values
