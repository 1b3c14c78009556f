"""Round-to-nearest, group-wise, asymmetric four-bit quantisation of a checkpoint's weights."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kernels.packing import IntWeight, quantize_nearest
from runtime.errors import ExportError

F32 = npt.NDArray[np.float32]

GROUP_SIZES = (128, 64, 32)


def quantize_rtn(weight: F32, group_size: int, name: str = "weight") -> IntWeight:
    """:func:`kernels.packing.quantize_nearest` on rows f32 [N, K] of the linear ``name``.

    Raises ExportError that names the linear: a group size that does not divide K, values that are not finite or too
    far apart for f16 scales.
    """
    check_group_size(name, weight.shape[1], group_size)
    try:
        return quantize_nearest(weight, group_size)
    except ValueError as problem:
        raise ExportError(f"{name}: {problem}", hint="check the checkpoint") from problem


def check_group_size(name: str, k: int, group_size: int) -> None:
    """ExportError with the sizes that would do when ``group_size`` is unknown or does not divide ``k``."""
    if group_size not in GROUP_SIZES:
        raise ExportError(f"group size {group_size} is none of {GROUP_SIZES}", hint=f"--group-size {GROUP_SIZES[0]}")
    if k % group_size:
        fits = [str(size) for size in GROUP_SIZES if k % size == 0]
        hint = f"--group-size {fits[0]}" if fits else "no group size fits; the checkpoint cannot be quantised to int4"
        raise ExportError(f"{name}: groups of {group_size} do not divide its {k} inputs", hint=hint)
