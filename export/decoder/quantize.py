"""Round-to-nearest, group-wise, asymmetric quantisation of a checkpoint's weights."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kernels.packing import IntWeight, quantize_nearest
from runtime.errors import ExportError

F32 = npt.NDArray[np.float32]

GROUP_SIZES = (128, 64, 32)


def quantize_rtn(weight: F32, group_size: int, name: str = "weight", bits: int = 4) -> IntWeight:
    """:func:`kernels.packing.quantize_nearest` on rows f32 [N, K] of the linear ``name``.

    Raises ExportError that names the linear: a group size that does not divide K, values that are not finite or too
    far apart for f16 scales.
    """
    check_group_size(name, weight.shape[1], group_size)
    try:
        return quantize_nearest(weight, group_size, bits)
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


def choose_group_size(requested: int | None, stored: int | None) -> int:
    """The group size of a decoder: the one of its stored integers, else the requested one, else 128.

    Raises ExportError when both are there and differ: regrouping would change the integers.
    """
    if requested is not None and stored is not None and requested != stored:
        message = f"--group-size {requested}: the checkpoint's integers are in groups of {stored}"
        raise ExportError(message, hint=f"leave --group-size out, or use --group-size {stored}")
    return stored or requested or GROUP_SIZES[0]
