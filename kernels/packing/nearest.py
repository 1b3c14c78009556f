"""Round-to-nearest quantisation to four bits: the plainest way from floats to :class:`IntWeight`."""

from __future__ import annotations

import numpy as np

from kernels.packing.integers import F32, MAX_INT4, IntWeight

MIN_RANGE = 1e-5


def quantize_nearest(weight: F32, group_size: int) -> IntWeight:
    """Quantises rows of a weight f32 [N, K] in groups of ``group_size`` along K to the nearest of 16 levels.

    The range of a group is made to contain 0, so that 0 stays 0 and a group of one sign does not saturate. The scale
    (max − min)/15 is rounded to f16 first and the integers are rounded against that value, so that stored scales and
    integers belong together. Rounding is half to even. Independent of how rows were divided into calls.
    Raises ValueError for a group size that does not divide K, values that are not finite, and a range above f16.
    Source: reference quantiser of AWQ, with the range fixed (it saturates groups of one sign).
    """
    n, k = weight.shape
    if group_size < 1 or k % group_size:
        raise ValueError(f"groups of {group_size} do not divide its {k} inputs")
    grouped = weight.reshape(n, k // group_size, group_size)
    low = np.minimum(grouped.min(axis=2), np.float32(0))
    high = np.maximum(grouped.max(axis=2), np.float32(0))
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise ValueError("has values that are not finite")
    with np.errstate(over="ignore"):
        scales = (np.maximum(high - low, np.float32(MIN_RANGE)) / np.float32(MAX_INT4)).astype(np.float16)
    if not np.isfinite(scales).all():
        raise ValueError(f"a group spans {float((high - low).max()):g}, more than f16 scales hold")
    exact = scales.astype(np.float32)
    zeros = np.clip(np.rint(-low / exact), 0, MAX_INT4)
    levels = grouped / exact[:, :, None]
    np.rint(levels, out=levels)
    levels += zeros[:, :, None]
    np.clip(levels, 0, MAX_INT4, out=levels)
    return IntWeight(levels.astype(np.uint8).reshape(n, k), zeros.astype(np.uint8), scales, group_size)
