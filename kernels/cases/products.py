"""Activations and an int4 weight, for the cases of every kernel that multiplies them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kernels.arrays import Activation, DeviceArray
from kernels.cases.cache import rounded
from kernels.cases.numbers import integers, uniform
from kernels.kernel import F64
from kernels.launch.weights import T16Weight, upload_t16
from kernels.packing import IntWeight, pack, reordered
from kernels.packing.t16 import Order
from kernels.reference import gemv as reference
from kernels.workbench import Workbench

Outputs = Mapping[str, npt.NDArray[Any]]
DTYPES: tuple[Activation, ...] = ("f16", "bf16")
ODD_ROWS = 37


@dataclass(frozen=True, slots=True)
class Product:
    """Activations x [M, K], values that T holds, and a weight [N, K] with its rows in natural order."""

    x: F64
    weight: IntWeight
    dtype: Activation

    @property
    def entry_suffix(self) -> str:
        """End of the names of the entries that take it."""
        return f"g{self.weight.group_size}_{self.dtype}"

    @property
    def name(self) -> str:
        """Its sizes."""
        return f"M{self.x.shape[0]} N{self.weight.shape[0]} K{self.weight.shape[1]}"

    def dequantized(self) -> F64:
        """The weight, exactly."""
        return reference.dequantized(self.weight)

    def upload(self, bench: Workbench, order: Order | None = None) -> tuple[DeviceArray, T16Weight]:
        """x and the weight, its rows in ``order``, in device memory."""
        weight = self.weight if order is None else reordered(self.weight, order)
        w = upload_t16(pack(weight, "t16"), *weight.shape, weight.group_size, bench.upload)
        return bench.upload(self.x, self.dtype), w


def product(seed: int, tokens: int, n: int, k: int, group_size: int, dtype: Activation) -> Product:
    """Random integers, zero points of 0..15, scales of 0.002..0.03 and activations of -1..1."""
    groups = (n, k // group_size)
    weight = IntWeight(
        integers(seed, (n, k), 0, 16).astype(np.uint8),
        integers(seed + 1, groups, 0, 16).astype(np.uint8),
        uniform(seed + 2, groups, 0.002, 0.03).astype(np.float16),
        group_size,
    )
    return Product(rounded(uniform(seed + 3, (tokens, k), -1.0, 1.0), dtype), weight, dtype)
