"""The layout of ONNX Runtime's ``com.microsoft.MatMulNBits`` with four bits."""

from __future__ import annotations

import numpy as np

from kernels.packing.integers import IntWeight, Tensors
from kernels.packing.nibbles import expect, pack_bytes, unpack_bytes

MIN_BLOCK = 16


def pack_matmulnbits(weight: IntWeight) -> Tensors:
    """B u8 [N, G, group/2], scales f32 [N·G] (exact from f16), zero_points u8 [N·ceil(G/2)], whole bytes a row.

    The block size must be a power of two of at least 16. Source: the operator's schema in ONNX Runtime.
    """
    _check_block(weight.group_size)
    n, _ = weight.shape
    return {
        "B": pack_bytes(weight.q).reshape(n, weight.groups, weight.group_size // 2),
        "scales": weight.scales.astype(np.float32).reshape(-1),
        "zero_points": pack_bytes(weight.zeros).reshape(-1),
    }


def unpack_matmulnbits(tensors: Tensors, shape: tuple[int, int], group_size: int) -> IntWeight:
    """The inverse; scales that f16 cannot hold are refused."""
    _check_block(group_size)
    n, k = shape
    groups = k // group_size
    blocks = expect(tensors, "B", np.uint8, (n, groups, group_size // 2))
    scales = expect(tensors, "scales", np.float32, (n * groups,))
    zeros = expect(tensors, "zero_points", np.uint8, (n * ((groups + 1) // 2),))
    with np.errstate(over="ignore"):
        half = scales.astype(np.float16)
    if not np.array_equal(half.astype(np.float32), scales):
        raise ValueError("scales are not exact in float16")
    return IntWeight(
        q=unpack_bytes(blocks.reshape(n, k // 2), k),
        zeros=unpack_bytes(zeros.reshape(n, -1), groups),
        scales=half.reshape(n, groups),
        group_size=group_size,
    )


def _check_block(group_size: int) -> None:
    if group_size < MIN_BLOCK or group_size & (group_size - 1):
        raise ValueError(f"group size {group_size} is not a power of two of at least {MIN_BLOCK}")
