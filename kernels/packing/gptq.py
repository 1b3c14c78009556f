"""The layouts of GPTQ checkpoints (also exllama's) without activation reordering."""

from __future__ import annotations

import numpy as np

from kernels.packing.integers import MAX_INT4, IntWeight, Tensors
from kernels.packing.nibbles import expect, pack_words, require_multiple, unpack_words


def pack_gptq(weight: IntWeight) -> Tensors:
    """qweight i32 [K/8, N] packed along K, qzeros i32 [G, N/8] holding z − 1, scales f16 [G, N], g_idx i32 [K].

    Holds N and K that are multiples of 8, any group size, and zero points of 1..15: 0 is refused, because readers
    disagree on what its stored 15 means. Source: AutoGPTQ's packer (``checkpoint_format`` "gptq").
    """
    if not weight.zeros.min():
        raise ValueError("a zero point is 0; this layout stores z − 1 and holds 1..15 only")
    return _pack(weight, 1)


def unpack_gptq(tensors: Tensors, shape: tuple[int, int], group_size: int) -> IntWeight:
    """The inverse; a g_idx that reorders the inputs (desc_act) and a stored zero point of 15 are refused."""
    return _unpack(tensors, shape, group_size, 1)


def pack_gptq_v2(weight: IntWeight) -> Tensors:
    """As :func:`pack_gptq`, with z itself in qzeros.

    Holds N and K that are multiples of 8, any group size, and every zero point. Source: GPTQModel
    (``checkpoint_format`` "gptq_v2").
    """
    return _pack(weight, 0)


def unpack_gptq_v2(tensors: Tensors, shape: tuple[int, int], group_size: int) -> IntWeight:
    """The inverse; a g_idx that reorders the inputs (desc_act) is refused."""
    return _unpack(tensors, shape, group_size, 0)


def _pack(weight: IntWeight, offset: int) -> Tensors:
    n, k = weight.shape
    require_multiple("N", n, 8)
    require_multiple("K", k, 8)
    return {
        "qweight": np.ascontiguousarray(pack_words(weight.q).T),
        "qzeros": pack_words(np.ascontiguousarray((weight.zeros - np.uint8(offset)).T)),
        "scales": np.ascontiguousarray(weight.scales.T),
        "g_idx": (np.arange(k) // weight.group_size).astype(np.int32),
    }


def _unpack(tensors: Tensors, shape: tuple[int, int], group_size: int, offset: int) -> IntWeight:
    n, k = shape
    require_multiple("N", n, 8)
    require_multiple("K", k, 8)
    groups = k // group_size
    if "g_idx" in tensors:
        order = expect(tensors, "g_idx", np.int32, (k,))
        if not np.array_equal(order, np.arange(k) // group_size):
            raise ValueError("g_idx reorders the inputs (desc_act=true), which this reader does not do")
    words = expect(tensors, "qweight", np.int32, (k // 8, n))
    stored = unpack_words(expect(tensors, "qzeros", np.int32, (groups, n // 8)))
    if offset and stored.max() == MAX_INT4:
        raise ValueError("a stored zero point is 15, which stands for 16 or 0 depending on the writer")
    scales = expect(tensors, "scales", np.float16, (groups, n))
    return IntWeight(
        unpack_words(np.ascontiguousarray(words.T)),
        np.ascontiguousarray((stored + np.uint8(offset)).T),
        np.ascontiguousarray(scales.T),
        group_size,
    )
