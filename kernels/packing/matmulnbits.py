"""The layout of ONNX Runtime's ``com.microsoft.MatMulNBits`` with four or eight bits."""

from __future__ import annotations

import numpy as np

from kernels.packing.integers import IntWeight, Tensors, exact_f16
from kernels.packing.nibbles import expect, pack_bytes, unpack_bytes

MIN_BLOCK = 16


def pack_matmulnbits(weight: IntWeight) -> Tensors:
    """B u8 [N, G, group·bits/8], scales f32 [N·G] (exact from f16), zero_points u8, whole bytes a row and flat.

    Two values a byte with four bits (a row of zero points takes ceil(G/2) bytes), one with eight. Holds every integer
    and scale; the group size must be a power of two of at least 16. Source: the operator's schema in ONNX Runtime.
    """
    _check_block(weight.group_size)
    n, _ = weight.shape
    four = weight.bits == 4
    return {
        "B": (pack_bytes(weight.q) if four else weight.q).reshape(n, weight.groups, -1),
        "scales": weight.scales.astype(np.float32).reshape(-1),
        "zero_points": (pack_bytes(weight.zeros) if four else weight.zeros).reshape(-1),
    }


def unpack_matmulnbits(tensors: Tensors, shape: tuple[int, int], group_size: int, bits: int = 4) -> IntWeight:
    """The inverse; scales that f16 cannot hold are refused."""
    _check_block(group_size)
    n, k = shape
    groups = k // group_size
    blocks = expect(tensors, "B", np.uint8, (n, groups, group_size * bits // 8)).reshape(n, -1)
    scales = exact_f16(expect(tensors, "scales", np.float32, (n * groups,)))
    zeros = expect(tensors, "zero_points", np.uint8, (n * ((groups * bits + 7) // 8),)).reshape(n, -1)
    return IntWeight(
        q=unpack_bytes(blocks, k) if bits == 4 else blocks.copy(),
        zeros=unpack_bytes(zeros, groups) if bits == 4 else zeros.copy(),
        scales=scales.reshape(n, groups),
        group_size=group_size,
        bits=bits,
    )


def _check_block(group_size: int) -> None:
    if group_size < MIN_BLOCK or group_size & (group_size - 1):
        raise ValueError(f"group size {group_size} is not a power of two of at least {MIN_BLOCK}")
