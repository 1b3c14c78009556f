"""Four-bit values in wider words, the lowest nibble first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from kernels.packing.integers import U8

NIBBLES_PER_WORD = 8
SEQUENTIAL = (0, 1, 2, 3, 4, 5, 6, 7)


def pack_bytes(values: U8) -> U8:
    """Two values a byte along the last axis, the first in the low nibble; an odd count is padded with a zero nibble."""
    if values.shape[-1] % 2:
        values = np.concatenate([values, np.zeros((*values.shape[:-1], 1), np.uint8)], axis=-1)
    packed: U8 = values[..., 0::2] | (values[..., 1::2] << np.uint8(4))
    return packed


def unpack_bytes(packed: U8, count: int) -> U8:
    """The first ``count`` values along the last axis; the inverse of :func:`pack_bytes`."""
    values = np.empty((*packed.shape[:-1], packed.shape[-1] * 2), np.uint8)
    values[..., 0::2] = packed & 0xF
    values[..., 1::2] = packed >> 4
    return np.ascontiguousarray(values[..., :count])


def pack_words(values: U8, order: Sequence[int] = SEQUENTIAL) -> npt.NDArray[np.int32]:
    """Eight values an int32 along the last axis: nibble i of word c is value ``8c + order[i]``."""
    if values.shape[-1] % NIBBLES_PER_WORD:
        raise ValueError(f"{values.shape[-1]} values do not fill words of {NIBBLES_PER_WORD}")
    grouped = values.reshape(*values.shape[:-1], -1, NIBBLES_PER_WORD)
    words = np.zeros(grouped.shape[:-1], np.uint32)
    for nibble, source in enumerate(order):
        words |= grouped[..., source].astype(np.uint32) << np.uint32(4 * nibble)
    return words.view(np.int32)


def unpack_words(words: npt.NDArray[np.int32], order: Sequence[int] = SEQUENTIAL) -> U8:
    """The values along the last axis; the inverse of :func:`pack_words`."""
    bits = np.ascontiguousarray(words).view(np.uint32)
    grouped = np.empty((*words.shape, NIBBLES_PER_WORD), np.uint8)
    for nibble, target in enumerate(order):
        grouped[..., target] = (bits >> np.uint32(4 * nibble)) & np.uint32(0xF)
    return grouped.reshape(*words.shape[:-1], -1)


def expect(
    tensors: dict[str, npt.NDArray[Any]], name: str, dtype: type[np.generic], shape: tuple[int, ...]
) -> npt.NDArray[Any]:
    """The tensor of that name; ValueError when it is missing or has another dtype or shape."""
    if name not in tensors:
        raise ValueError(f"tensor {name!r} is missing; there are {sorted(tensors)}")
    tensor = tensors[name]
    if tensor.dtype != dtype or tensor.shape != shape:
        wanted = f"{np.dtype(dtype).name} {list(shape)}"
        raise ValueError(f"{name} is {tensor.dtype.name} {list(tensor.shape)}, expected {wanted}")
    return tensor


def require_multiple(what: str, value: int, divisor: int) -> None:
    """ValueError when ``value`` is not a multiple of ``divisor``."""
    if value % divisor:
        raise ValueError(f"{what} is {value}, this layout needs a multiple of {divisor}")
