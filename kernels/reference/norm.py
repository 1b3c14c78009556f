"""RMSNorm in float64, and how far fp32 may be from it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kernels.kernel import F64

ULP = 2.0**-24  # half the distance of two f32 values near 1
THREADS, LANE_STEPS, WARPS, VALUES = 256, 5, 8, 4
TINY = 2.0**-126
# Half the distance of neighbours, relative to the value, and half the least distance, of the type of the result.
ROUNDING = {"f16": (2.0**-11, 2.0**-25), "bf16": (2.0**-8, 2.0**-134)}


def rmsnorm_residual(
    residual: npt.NDArray[np.floating],
    gamma: npt.NDArray[np.floating],
    *,
    eps: float,
    delta: npt.NDArray[np.floating] | None = None,
    copies: int = 1,
) -> tuple[F64, F64]:
    """The new residual and the normed rows, f64 [M, H] and [M, copies·H], from the values that the kernel reads."""
    total = residual.astype(np.float64)
    if delta is not None:
        total = total + delta.astype(np.float64)
    scale = 1.0 / np.sqrt((total**2).mean(axis=1, keepdims=True) + eps)
    return total, np.tile(total * scale * gamma.astype(np.float64), (1, copies))


def bounds(residual: F64, y: F64, dtype: str, *, added: bool) -> tuple[F64, F64]:
    """Largest differences allowed for the residual and for y, per element, from the answers of `rmsnorm_residual`.

    The residual is rounded once, when something was added. In y each of these is relative and at most ULP (2^-24)
    unless said: the addition 1, its part in the sum of squares 2; a square 1, the sum inside four 2, of the
    ceil(H / 1024) fours of a thread, over 5 exchanges of lanes and 8 warps; the division 1 and eps 1. The square root
    halves all that; rsqrtf itself is within 2 ulp, 4; two products 2; then the rounding to the type.
    """
    width = residual.shape[1]
    fours = -(-width // (VALUES * THREADS))
    mean_square = 2 * added + 1 + 2 + fours + LANE_STEPS + WARPS + 2
    relative = (added + mean_square / 2 + 4 + 2) * ULP * 1.01
    half, least = ROUNDING[dtype]
    return np.abs(residual) * ULP * added, np.abs(y) * (relative + half * (1 + relative)) + least + TINY
