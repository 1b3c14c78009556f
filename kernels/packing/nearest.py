"""Round-to-nearest quantisation to four or eight bits: the plainest way from floats to :class:`IntWeight`."""

from __future__ import annotations

import numpy as np

from kernels.packing.integers import BITS, F32, IntWeight

MIN_RANGE = 1e-5


def quantize_nearest(weight: F32, group_size: int, bits: int = 4) -> IntWeight:
    """Quantises rows of a weight f32 [N, K] in groups of ``group_size`` along K to the nearest of 2^bits levels.

    The range of a group is made to contain 0, so that 0 stays 0 and a group of one sign does not saturate. The scale
    (max − min)/(2^bits − 1) is rounded to f16 first and the integers are rounded against that value, so that stored
    scales and integers belong together. Rounding is half to even. Independent of how rows were divided into calls.
    Raises ValueError for bits other than 4 and 8, a group size that does not divide K, values that are not finite, and
    a range above f16.
    Source: reference quantiser of AWQ, with the range fixed (it saturates groups of one sign).
    """
    n, k = weight.shape
    if bits not in BITS:
        raise ValueError(f"bits is {bits}, expected one of {BITS}")
    levels = (1 << bits) - 1
    if group_size < 1 or k % group_size:
        raise ValueError(f"groups of {group_size} do not divide its {k} inputs")
    grouped = weight.reshape(n, k // group_size, group_size)
    low = np.minimum(grouped.min(axis=2), np.float32(0))
    high = np.maximum(grouped.max(axis=2), np.float32(0))
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise ValueError("has values that are not finite")
    with np.errstate(over="ignore"):
        scales = (np.maximum(high - low, np.float32(MIN_RANGE)) / np.float32(levels)).astype(np.float16)
    if not np.isfinite(scales).all():
        raise ValueError(f"a group spans {float((high - low).max()):g}, more than f16 scales hold")
    exact = scales.astype(np.float32)
    zeros = np.clip(np.rint(-low / exact), 0, levels)
    steps = grouped / exact[:, :, None]
    np.rint(steps, out=steps)
    steps += zeros[:, :, None]
    np.clip(steps, 0, levels, out=steps)
    return IntWeight(steps.astype(np.uint8).reshape(n, k), zeros.astype(np.uint8), scales, group_size, bits)
