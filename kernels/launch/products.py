"""What every product with an int4 weight takes, whichever kernel computes it."""

from __future__ import annotations

from kernels.arrays import DeviceArray, check_array
from kernels.errors import ArrayError
from kernels.launch.weights import T16Weight
from kernels.packing.t16 import GROUP_SIZES, TILE_ROWS

WEIGHT_SIGNATURE = "PPPP"  # x, and the weight's three arrays


def entries(symbol: str) -> tuple[str, ...]:
    """The compiled functions of a symbol: one per group size and dtype."""
    return tuple(f"{symbol}_g{group}_{dtype}" for group in GROUP_SIZES for dtype in ("f16", "bf16"))


def check_bias(bias: DeviceArray | None, w: T16Weight) -> None:
    """ArrayError unless bias is f32 [N] or None."""
    if bias is not None:
        check_array("bias", bias, "f32", (w.n,))


def check_gate_up(w: T16Weight) -> None:
    """ArrayError unless the rows are whole tiles of gate and up."""
    if w.n % TILE_ROWS:
        raise ArrayError(f"the weight has {w.n} rows, expected whole tiles of 8 gate and 8 up rows")


def pointer(array: DeviceArray | None) -> int:
    """Device address, 0 for None."""
    return 0 if array is None else array.ptr
