"""The canonical form of an integer weight, which every stored layout is packed from and unpacked to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

U8 = npt.NDArray[np.uint8]
F16 = npt.NDArray[np.float16]
F32 = npt.NDArray[np.float32]
Tensors = dict[str, npt.NDArray[Any]]

MAX_INT4 = 15
BITS = (4, 8)


@dataclass(frozen=True, slots=True, eq=False)
class IntWeight:
    """A matrix [N out, K in] as ``w ≈ (q − z)·s`` in groups of ``group_size`` along K.

    q: u8 [N, K], zeros: u8 [N, G], both 0..15; scales: f16 [N, G], positive and finite; G = K / group_size.
    bits: 4, or 8 for an LM head (q and zeros 0..255). Raises ValueError that names the array, its value and the limit.
    The arrays are not copied.
    """

    q: U8
    zeros: U8
    scales: F16
    group_size: int
    bits: int = 4

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise ValueError(f"bits is {self.bits}, expected one of {BITS}")
        _check_array("q", self.q, np.uint8)
        n, k = self.q.shape
        if self.group_size < 1 or k % self.group_size:
            raise ValueError(f"group_size {self.group_size} does not divide the {k} input features")
        groups = (n, k // self.group_size)
        for name, array, dtype in (("zeros", self.zeros, np.uint8), ("scales", self.scales, np.float16)):
            _check_array(name, array, dtype)
            if array.shape != groups:
                raise ValueError(f"{name} has shape {array.shape}, expected {groups} for groups of {self.group_size}")
        for name, integers in (("q", self.q), ("zeros", self.zeros)):
            if integers.max() > self.levels:
                raise ValueError(f"{name} has the value {integers.max()}, above {self.levels}")
        _check_scales(self.scales)

    @property
    def levels(self) -> int:
        """The largest integer, 15 or 255."""
        return (1 << self.bits) - 1

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return self.q.shape[0], self.q.shape[1]

    @property
    def groups(self) -> int:
        """G, the number of groups in a row."""
        return int(self.zeros.shape[1])

    def dequantize(self) -> F32:
        """The matrix that the integers stand for, f32 [N, K]: ``(q − z)·s``, each product rounded once."""
        n, k = self.shape
        grouped = self.q.reshape(n, self.groups, self.group_size).astype(np.float32)
        grouped -= self.zeros[:, :, None].astype(np.float32)
        grouped *= self.scales[:, :, None].astype(np.float32)
        return grouped.reshape(n, k)

    def equals(self, other: IntWeight) -> bool:
        """Whether integers, zeros, scales (bit for bit), groups and bits are the same."""
        return (
            (self.group_size, self.bits) == (other.group_size, other.bits)
            and np.array_equal(self.q, other.q)
            and np.array_equal(self.zeros, other.zeros)
            and np.array_equal(self.scales, other.scales)
        )


def exact_f16(values: npt.NDArray[Any], name: str = "scales") -> F16:
    """Floats of any type as f16; ValueError that names the first value which f16 cannot hold exactly."""
    with np.errstate(over="ignore"):
        half: F16 = values.astype(np.float16)
    lost = half.astype(values.dtype) != values  # also where a value is NaN
    if lost.any():
        raise ValueError(f"{name} has the value {float(values[lost][0]):.9g}, which float16 does not hold exactly")
    return half


def _check_scales(scales: F16) -> None:
    good = np.isfinite(scales) & (scales > 0)
    if not good.all():
        raise ValueError(f"scales has the value {float(scales[~good][0]):g}, expected positive finite numbers")


def _check_array(name: str, array: npt.NDArray[Any], dtype: type[np.generic]) -> None:
    if array.dtype != dtype or array.ndim != 2 or not array.size:
        wanted = np.dtype(dtype).name
        raise ValueError(f"{name} is {array.dtype.name} {list(array.shape)}, expected a non-empty {wanted} matrix")
