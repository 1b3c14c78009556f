"""Layouts of AWQ checkpoints: AutoAWQ ``gemm`` and ``gemv``, and llm-awq v2 (``gemv_fast``).

Sources: AutoAWQ's packing_utils and WQLinear_GEMV, llm-awq's qmodule; the closed form of the v2 order was checked
exhaustively against the latter (reference/awq.md §4.5).
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt

from kernels.packing.integers import F16, MAX_INT4, U8, IntWeight, Tensors
from kernels.packing.nibbles import expect, pack_words, require_multiple, unpack_words

Scalar = TypeVar("Scalar", bound=np.generic)

MAX_F16 = 65504.0
GEMM_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def pack_gemm(weight: IntWeight) -> Tensors:
    """qweight i32 [K, N/8], qzeros i32 [G, N/8], both in the order 0 2 4 6 1 3 5 7; scales f16 [G, N].

    Holds every integer, zero point and scale of an N that is a multiple of 8, in any group size.
    """
    require_multiple("N", weight.shape[0], 8)
    return {
        "qweight": pack_words(np.ascontiguousarray(weight.q.T), GEMM_ORDER),
        "qzeros": pack_words(np.ascontiguousarray(weight.zeros.T), GEMM_ORDER),
        "scales": np.ascontiguousarray(weight.scales.T),
    }


def unpack_gemm(tensors: Tensors, shape: tuple[int, int], group_size: int) -> IntWeight:
    """The inverse of :func:`pack_gemm`."""
    n, k = shape
    require_multiple("N", n, 8)
    groups = k // group_size
    q = unpack_words(expect(tensors, "qweight", np.int32, (k, n // 8)), GEMM_ORDER)
    zeros = unpack_words(expect(tensors, "qzeros", np.int32, (groups, n // 8)), GEMM_ORDER)
    scales = expect(tensors, "scales", np.float16, (groups, n))
    return _transposed(q, zeros, scales, group_size)


def zero_words(groups: int, group_size: int) -> int:
    """Words of a row of zeros in the gemv layouts: a multiple of 1, 2 or 4 for groups of ≥ 128, 64, 32."""
    step = {32: 4, 64: 2}.get(group_size, 1)
    words = -(-groups // 8)
    return -(-words // step) * step


def pack_gemv(weight: IntWeight) -> Tensors:
    """qweight i32 [N, K/8] in order, qzeros i32 [N, zw], scales f16 [N, 8·zw], padded with zeros.

    Holds every integer, zero point and scale of a K that is a multiple of 8, in groups of 32, 64 or at least 128.
    """
    _check_gemv_group(weight.group_size)
    require_multiple("K", weight.shape[1], 8)
    padded = 8 * zero_words(weight.groups, weight.group_size)
    return {
        "qweight": pack_words(weight.q),
        "qzeros": pack_words(_pad_columns(weight.zeros, padded)),
        "scales": _pad_columns(weight.scales, padded),
    }


def unpack_gemv(tensors: Tensors, shape: tuple[int, int], group_size: int) -> IntWeight:
    """The inverse of :func:`pack_gemv`; the padding is not looked at."""
    _check_gemv_group(group_size)
    n, k = shape
    require_multiple("K", k, 8)
    groups = k // group_size
    words = zero_words(groups, group_size)
    q = unpack_words(expect(tensors, "qweight", np.int32, (n, k // 8)))
    zeros = unpack_words(expect(tensors, "qzeros", np.int32, (n, words)))[:, :groups]
    scales = expect(tensors, "scales", np.float16, (n, 8 * words))[:, :groups]
    return IntWeight(q, np.ascontiguousarray(zeros), np.ascontiguousarray(scales), group_size)


def pack_llm_awq(weight: IntWeight) -> Tensors:
    """qweight i16 [N/4, K], scales f16 [8·zw, N], scaled_zeros f16 [8·zw, N] = −s·z; rows from G on are zero.

    Holds an N that is a multiple of 8 and a K of 64, groups of 32, 64 or at least 128, and zero points whose s·z is at
    most 65504, the largest f16; below it −s·z gives every zero point of every scale back.
    """
    _check_llm_awq(weight.shape, weight.group_size)
    padded = 8 * zero_words(weight.groups, weight.group_size)
    products = weight.scales.astype(np.float32) * weight.zeros.astype(np.float32)
    if products.max() > MAX_F16:
        raise ValueError(f"s·z is {products.max():g}, above {MAX_F16:g}, the largest that float16 −s·z holds")
    scaled = (-products).astype(np.float16)
    return {
        "qweight": _interleave(weight.q),
        "scales": np.ascontiguousarray(_pad_columns(weight.scales, padded).T),
        "scaled_zeros": np.ascontiguousarray(_pad_columns(scaled, padded).T),
    }


def unpack_llm_awq(tensors: Tensors, shape: tuple[int, int], group_size: int) -> IntWeight:
    """The inverse of :func:`pack_llm_awq`; zeros are round(−scaled_zeros / scales), refused outside 0..15.

    AutoAWQ's name for scaled_zeros, ``qzeros``, is read too.
    """
    if "qzeros" in tensors and "scaled_zeros" not in tensors:
        tensors = {**tensors, "scaled_zeros": tensors["qzeros"]}
    _check_llm_awq(shape, group_size)
    n, k = shape
    groups = k // group_size
    padded = 8 * zero_words(groups, group_size)
    q = _deinterleave(expect(tensors, "qweight", np.int16, (n // 4, k)))
    scales = np.ascontiguousarray(expect(tensors, "scales", np.float16, (padded, n))[:groups].T)
    scaled = np.ascontiguousarray(expect(tensors, "scaled_zeros", np.float16, (padded, n))[:groups].T)
    zeros = _zeros_of(scaled, scales)
    if zeros is None:
        raise ValueError(f"scaled_zeros do not stand for zero points of 0..{MAX_INT4}")
    return IntWeight(q, zeros, scales, group_size)


def _transposed(q: U8, zeros: U8, scales: npt.NDArray[np.float16], group_size: int) -> IntWeight:
    return IntWeight(
        np.ascontiguousarray(q.T), np.ascontiguousarray(zeros.T), np.ascontiguousarray(scales.T), group_size
    )


def _pad_columns(values: npt.NDArray[Scalar], columns: int) -> npt.NDArray[Scalar]:
    padded = np.zeros((values.shape[0], columns), values.dtype)
    padded[:, : values.shape[1]] = values
    return padded


def _interleave(q: U8) -> npt.NDArray[np.int16]:
    """(n, k) → nibble (k mod 32)//8 of row n//4, column 64·(k//64) + 16·(n mod 4) + 8·((k mod 64)//32) + k mod 8."""
    n, k = q.shape
    parts = q.reshape(n // 4, 4, k // 64, 2, 4, 8).astype(np.uint16)  # super-row, row, step, half, nibble, k mod 8
    words = np.zeros((n // 4, 4, k // 64, 2, 8), np.uint16)
    for nibble in range(4):
        words |= parts[:, :, :, :, nibble] << np.uint16(4 * nibble)
    return np.ascontiguousarray(words.transpose(0, 2, 1, 3, 4)).reshape(n // 4, k).view(np.int16)


def _deinterleave(words: npt.NDArray[np.int16]) -> U8:
    rows, k = words.shape
    parts = np.ascontiguousarray(words).view(np.uint16).reshape(rows, k // 64, 4, 2, 8).transpose(0, 2, 1, 3, 4)
    q = np.empty((rows, 4, k // 64, 2, 4, 8), np.uint8)
    for nibble in range(4):
        q[:, :, :, :, nibble] = (parts >> np.uint16(4 * nibble)) & np.uint16(0xF)
    return q.reshape(rows * 4, k)


def _zeros_of(scaled: F16, scales: F16) -> U8 | None:
    """Zero points behind −s·z, or None when they are not integers of 0..15 (within f16's rounding)."""
    wide, divisor = -scaled.astype(np.float32), scales.astype(np.float32)
    ratio = np.divide(wide, divisor, out=np.where(wide == 0, np.float32(0), np.float32(-1)), where=divisor > 0)
    ratio[~np.isfinite(ratio)] = -1
    rounded = np.rint(ratio)
    good = (rounded >= 0) & (rounded <= MAX_INT4) & (np.abs(ratio - rounded) < 0.05)
    return rounded.astype(np.uint8) if good.all() else None


def _check_gemv_group(group_size: int) -> None:
    if group_size < 128 and group_size not in (32, 64):
        raise ValueError(f"group size {group_size} is not 32, 64 or at least 128")


def _check_llm_awq(shape: tuple[int, int], group_size: int) -> None:
    _check_gemv_group(group_size)
    require_multiple("N", shape[0], 8)
    require_multiple("K", shape[1], 64)
