"""Packed weights in device memory, as launchers take them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from kernels.arrays import DeviceArray, DType, check_array
from kernels.errors import ArrayError
from kernels.packing.t16 import GROUP_SIZES, HALF_ROWS, steps_of, tiles_of

Upload = Callable[[npt.NDArray[Any], DType], DeviceArray]
DTYPES: Mapping[str, DType] = {"qw": "u32", "sc": "f16", "zp": "u8"}


@dataclass(frozen=True, slots=True)
class T16Weight:
    """An int4 matrix [n, k] in layout t16 (kernels/packing/t16.py): y = x · Wᵀ.

    qw u32 [tiles, ceil(k/64), 32, 4], sc f16 [tiles, k/group, 8, 2], zp u8 [tiles, k/group, 8]; tiles = ceil(n/16).
    Rows from n on are padding, whose outputs no kernel stores. ArrayError for anything else.
    """

    qw: DeviceArray
    sc: DeviceArray
    zp: DeviceArray
    n: int
    k: int
    group_size: int

    def __post_init__(self) -> None:
        if self.n < 1 or self.k < 1:
            raise ArrayError(f"the weight is [{self.n}, {self.k}], expected at least one row and one input")
        if self.group_size not in GROUP_SIZES:
            raise ArrayError(f"group size {self.group_size} is not one of {', '.join(map(str, GROUP_SIZES))}")
        if self.k % self.group_size:
            raise ArrayError(f"{self.k} inputs are not a multiple of the group size {self.group_size}")
        check_array("qw", self.qw, DTYPES["qw"], (self.tiles, steps_of(self.k), 32, 4))
        check_array("sc", self.sc, DTYPES["sc"], (self.tiles, self.groups, HALF_ROWS, 2))
        check_array("zp", self.zp, DTYPES["zp"], (self.tiles, self.groups, HALF_ROWS))

    @property
    def tiles(self) -> int:
        """Tiles of 16 rows."""
        return tiles_of(self.n)

    @property
    def groups(self) -> int:
        """Groups in a row."""
        return self.k // self.group_size

    @property
    def nbytes(self) -> int:
        """Bytes in device memory."""
        return self.qw.nbytes + self.sc.nbytes + self.zp.nbytes


def upload_t16(tensors: Mapping[str, npt.NDArray[Any]], n: int, k: int, group_size: int, upload: Upload) -> T16Weight:
    """Bring an [n, k] matrix that ``pack(weight, "t16")`` made into device memory, through ``upload(values, dtype)``.

    Raises ArrayError when a tensor is missing or does not fit n, k and group_size.
    """
    missing = DTYPES.keys() - tensors.keys()
    if missing:
        raise ArrayError(f"tensors {', '.join(sorted(missing))} are missing; there are {sorted(tensors)}")
    arrays = {name: upload(tensors[name], dtype) for name, dtype in DTYPES.items()}
    return T16Weight(arrays["qw"], arrays["sc"], arrays["zp"], n, k, group_size)
