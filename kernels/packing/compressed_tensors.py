"""The ``pack-quantized`` layout of compressed-tensors checkpoints with four bits and f16 scales."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kernels.packing.integers import U8, IntWeight, Tensors
from kernels.packing.nibbles import expect, pack_words, require_multiple, unpack_words

SYMMETRIC_ZERO = 8


def pack_compressed(weight: IntWeight) -> Tensors:
    """weight_packed i32 [N, K/8], weight_scale f16 [N, G], weight_zero_point i32 [N/8, G] packed along N, weight_shape.

    The signed value v is stored as v + 8, which is our unsigned q; the same holds for zero points. Holds every integer,
    zero point and scale of N and K that are multiples of 8, in any group size. Source: the compressed-tensors package.
    """
    n, k = weight.shape
    require_multiple("N", n, 8)
    require_multiple("K", k, 8)
    return {
        "weight_packed": pack_words(weight.q),
        "weight_scale": weight.scales.copy(),
        "weight_zero_point": np.ascontiguousarray(pack_words(np.ascontiguousarray(weight.zeros.T)).T),
        "weight_shape": np.array([n, k], np.int64),
    }


def unpack_compressed(tensors: Tensors, shape: tuple[int, int], group_size: int) -> IntWeight:
    """The inverse; without weight_zero_point (symmetric checkpoints) every zero point is 8.

    Early versions of the package left weight_zero_point unpacked, i8 [N, G]: read too.
    """
    n, k = shape
    require_multiple("N", n, 8)
    require_multiple("K", k, 8)
    groups = k // group_size
    if not np.array_equal(expect(tensors, "weight_shape", np.int64, (2,)), shape):
        raise ValueError(f"weight_shape is {tensors['weight_shape'].tolist()}, expected {list(shape)}")
    zeros = np.full((n, groups), SYMMETRIC_ZERO, np.uint8)
    stored = tensors.get("weight_zero_point")
    if stored is not None and stored.dtype == np.int8:
        zeros = _from_signed(expect(tensors, "weight_zero_point", np.int8, (n, groups)))
    elif stored is not None:
        words = expect(tensors, "weight_zero_point", np.int32, (n // 8, groups))
        zeros = np.ascontiguousarray(unpack_words(np.ascontiguousarray(words.T)).T)
    return IntWeight(
        unpack_words(expect(tensors, "weight_packed", np.int32, (n, k // 8))),
        zeros,
        expect(tensors, "weight_scale", np.float16, (n, groups)).copy(),
        group_size,
    )


def _from_signed(zeros: npt.NDArray[np.int8]) -> U8:
    shifted: U8 = (zeros.astype(np.int16) + SYMMETRIC_ZERO).clip(-1, 255).astype(np.uint8)
    return shifted  # a value outside -8..7 ends outside 0..15, which IntWeight refuses
