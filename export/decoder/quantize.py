"""Round-to-nearest, group-wise, asymmetric four-bit quantisation (numpy)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kernels.packing import IntWeight
from runtime.errors import ExportError

F32 = npt.NDArray[np.float32]

GROUP_SIZES = (128, 64, 32)
MAX_Q = 15
MIN_RANGE = 1e-5


def quantize_rtn(weight: F32, group_size: int, name: str = "weight") -> IntWeight:
    """Quantises rows of a weight f32 [N, K] in groups of ``group_size`` along K to the nearest of 16 levels.

    The range of a group is made to contain 0, so that 0 stays 0 and a group of one sign does not saturate. The scale
    (max − min)/15 is rounded to f16 first and the integers are rounded against that value, so that stored scales and
    integers belong together. Rounding is half to even. Independent of how the rows were divided into calls.
    Raises ExportError for a group size that does not divide K, values that are not finite, and a scale above f16.
    Source: reference quantiser of AWQ, with the range fixed (it saturates groups of one sign).
    """
    n, k = weight.shape
    check_group_size(name, k, group_size)
    grouped = weight.reshape(n, k // group_size, group_size)
    low = np.minimum(grouped.min(axis=2), np.float32(0))
    high = np.maximum(grouped.max(axis=2), np.float32(0))
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise ExportError(f"{name}: has values that are not finite", hint="check the checkpoint")
    with np.errstate(over="ignore"):
        scales = (np.maximum(high - low, np.float32(MIN_RANGE)) / np.float32(MAX_Q)).astype(np.float16)
    if not np.isfinite(scales).all():
        widest = float((high - low).max())
        raise ExportError(f"{name}: a group spans {widest:g}, more than f16 scales hold", hint="check the checkpoint")
    exact = scales.astype(np.float32)
    zeros = np.clip(np.rint(-low / exact), 0, MAX_Q)
    levels = grouped / exact[:, :, None]
    np.rint(levels, out=levels)
    levels += zeros[:, :, None]
    np.clip(levels, 0, MAX_Q, out=levels)
    return IntWeight(levels.astype(np.uint8).reshape(n, k), zeros.astype(np.uint8), scales, group_size)


def check_group_size(name: str, k: int, group_size: int) -> None:
    """ExportError with the sizes that would do when ``group_size`` is unknown or does not divide ``k``."""
    if group_size not in GROUP_SIZES:
        raise ExportError(f"group size {group_size} is none of {GROUP_SIZES}", hint=f"--group-size {GROUP_SIZES[0]}")
    if k % group_size:
        fits = [str(size) for size in GROUP_SIZES if k % size == 0]
        hint = f"--group-size {fits[0]}" if fits else "no group size fits; the checkpoint cannot be quantised to int4"
        raise ExportError(f"{name}: groups of {group_size} do not divide its {k} inputs", hint=hint)
