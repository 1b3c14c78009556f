"""The KV cache of one layer as kernels see it: two tables of device addresses, one entry per slot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kernels.arrays import DeviceArray, check_array
from kernels.errors import ArrayError

KvDType = Literal["f16", "bf16", "i8"]
HEAD_DIMS = (64, 128)
SCALE_BYTES = 2


@dataclass(frozen=True, slots=True)
class KvLayer:
    """Keys and values of one layer, for every slot.

    keys, values: u64 [slots], device addresses aligned to 16 bytes. At each lies data [kv_heads][capacity][head_dim] of
    ``dtype``; for i8 behind it f16 scales [kv_heads][capacity], and a value is data * scale (csrc/kv.cuh).
    Token m of a step is written at row state.pos + m of slot state.slot; with ``staged`` (a buffer for the tokens of
    one step that kv_quantize_i8 then moves into an int8 cache) at row m of entry 0, whatever the slot.
    """

    keys: DeviceArray
    values: DeviceArray
    kv_heads: int
    head_dim: int
    capacity: int
    dtype: KvDType
    staged: bool = False

    def check(self, name: str, *dtypes: KvDType) -> None:
        """Refuse tables, sizes or dtypes that no kernel takes. Raises ArrayError."""
        check_array(f"{name}.keys", self.keys, "u64", (None,), alignment=8)
        check_array(f"{name}.values", self.values, "u64", self.keys.shape, alignment=8)
        if self.dtype not in dtypes:
            raise ArrayError(f"{name} is {self.dtype}, expected {' or '.join(dtypes)}")
        if self.head_dim not in HEAD_DIMS:
            raise ArrayError(f"{name} has heads of {self.head_dim}, expected {' or '.join(map(str, HEAD_DIMS))}")
        if self.kv_heads < 1 or self.capacity < 1:
            raise ArrayError(f"{name} has {self.kv_heads} heads of {self.capacity} rows, expected at least 1 of each")


def slot_bytes(kv_heads: int, head_dim: int, capacity: int, dtype: KvDType) -> int:
    """Bytes behind one entry of one table: data, and for i8 the scales."""
    rows = kv_heads * capacity
    return rows * (head_dim + SCALE_BYTES) if dtype == "i8" else rows * head_dim * 2
