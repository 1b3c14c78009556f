"""The KV cache of one layer as kernels see it: two tables of device addresses, one entry per slot. Launches its
quantisation to int8 (csrc/kv_quantize.cu)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from kernels.arrays import DeviceArray, check_array
from kernels.driver.protocol import Stream
from kernels.errors import ArrayError
from kernels.kernel import Kernel
from kernels.reference.kv import quantize_i8
from kernels.state import DECODE_STATE

if TYPE_CHECKING:
    from kernels.loading import Kernels

KvDType = Literal["f16", "bf16", "i8"]
HEAD_DIMS = (64, 128)
SCALE_BYTES = 2
QUANTIZE_ROWS = 4  # per block, a warp each
THREADS = 128


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


def check_state(state: DeviceArray) -> None:
    """Refuse what is not a DecodeState. Raises ArrayError."""
    check_array("state", state, "u8", (DECODE_STATE.itemsize,))


def kv_quantize_i8(
    kernels: Kernels, stream: Stream, staged: KvLayer, kv: KvLayer, state: DeviceArray, *, tokens: int
) -> None:
    """Rows 0..tokens-1 of ``staged`` (f16 or bf16) → int8 rows state.pos.. of slot state.slot, with their scales.

    scale = f16(largest magnitude / 127), a value is rounded to the nearest multiple of it, ties to even; a row of zeros
    (or of nothing above 3.8e-6) becomes zeros with scale 0; a row with NaN, infinity or above 8.3e6 gets scale NaN.
    A position at or beyond kv.capacity is not written and sets STATUS_FULL. Raises ArrayError.
    """
    staged.check("staged", "f16", "bf16")
    kv.check("kv", "i8")
    check_state(state)
    if not staged.staged:
        raise ArrayError("staged is a cache of its own, expected one with staged=True")
    if (staged.kv_heads, staged.head_dim) != (kv.kv_heads, kv.head_dim):
        raise ArrayError(
            f"staged has {staged.kv_heads} heads of {staged.head_dim}, the cache {kv.kv_heads} of {kv.head_dim}"
        )
    if not 1 <= tokens <= staged.capacity:
        raise ArrayError(f"{tokens} tokens, expected 1 to {staged.capacity}, the rows of staged")
    kernels.launch(
        f"kv_quantize_i8_d{kv.head_dim}_{staged.dtype}",
        (-(-2 * tokens * kv.kv_heads // QUANTIZE_ROWS), 1, 1),
        (THREADS, 1, 1),
        0,
        stream,
        "PPiPPiiPi",
        staged.keys.ptr,
        staged.values.ptr,
        staged.capacity,
        kv.keys.ptr,
        kv.values.ptr,
        kv.kv_heads,
        kv.capacity,
        state.ptr,
        tokens,
    )


KERNELS = (
    Kernel(
        "kv_quantize_i8",
        "kv_quantize.cu",
        tuple(f"kv_quantize_i8_d{d}_{t}" for d in HEAD_DIMS for t in ("f16", "bf16")),
        kv_quantize_i8,
        quantize_i8,
    ),
)
