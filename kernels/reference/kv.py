"""Int8 rows of the KV cache as kv_quantize_i8 makes them, and what they stand for."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kernels.kernel import F64

LEVELS = 127
SMALLEST_NORMAL_F16 = 2.0**-14
HALF_SUBNORMAL_F16 = 2.0**-25


def quantize_i8(rows: npt.NDArray[np.floating]) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float16]]:
    """Int8 data [..., D] and f16 scales [...] of f16 or bf16 (as f32) rows, the very bits of the kernel.

    Both divisions are in f32, correctly rounded on a device as in numpy.
    """
    values = rows.astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        scales = (np.abs(values).max(axis=-1) / np.float32(LEVELS)).astype(np.float16)
    scales = np.where(np.isfinite(scales), scales, np.float16(np.nan))
    usable = scales > 0
    divisor = np.where(usable, scales, np.float16(1)).astype(np.float32)[..., None]
    with np.errstate(invalid="ignore"):
        data = np.where(usable[..., None], np.clip(np.rint(values / divisor), -LEVELS, LEVELS), 0)
    return data.astype(np.int8), scales


def dequantize_i8(data: npt.NDArray[np.int8], scales: npt.NDArray[np.float16]) -> F64:
    """The values that int8 rows stand for, exactly: 7 bits times 11."""
    return data.astype(np.float64) * scales.astype(np.float64)[..., None]


def quantization_bound(scales: npt.NDArray[np.float16]) -> F64:
    """Largest difference between a value and what its int8 stands for, f64 [..., 1].

    Half a scale, and the rounding of the quotient in f32 (127 * 2^-24 of a scale). Scales below 2^-14 are rounded to
    multiples of 2^-24, so that 127 of them miss the largest value by up to 127 * 2^-25 more.
    """
    wide = scales.astype(np.float64)[..., None]
    clipped = np.where(wide < SMALLEST_NORMAL_F16, LEVELS * HALF_SUBNORMAL_F16, 0.0)
    return np.asarray(wide * (0.5 + LEVELS * 2.0**-24) + clipped)
