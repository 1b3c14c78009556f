"""The layout that the CUDA kernels read: int4 tiles in the order in which lanes of a warp hold mma fragments.

A tile is 16 rows x 64 inputs, 512 bytes: lane l = 4g+q owns words 0..3, and word s has in nibble 4e+2p+h the value of
row 16t+8h+g and input 64b+32(s//2)+8q+4(s%2)+2p+e (csrc/t16.cuh draws it). Row orders for fused layers are index
arrays for :func:`reordered`, applied before packing.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt

from kernels.packing.integers import U8, IntWeight, Tensors
from kernels.packing.nibbles import expect, pack_words, unpack_words

TILE_ROWS = 16
TILE_INPUTS = 64
HALF_ROWS = 8
GROUP_SIZES = (32, 64, 128)
MAX_F16 = 65504.0
MAX_SPLIT_SCALE = MAX_F16 / 16

Scalar = TypeVar("Scalar", bound=np.generic)
Order = npt.NDArray[np.int64]


def tiles_of(rows: int) -> int:
    """Tiles of 16 rows that ``rows`` fill, the last one padded."""
    return -(-rows // TILE_ROWS)


def steps_of(inputs: int) -> int:
    """Tiles of 64 inputs that ``inputs`` fill; with groups of 32 the last may be half used."""
    return -(-inputs // TILE_INPUTS)


def pack_t16(weight: IntWeight) -> Tensors:
    """qw u32 [N/16, K/64, 32, 4], sc f16 [N/16, G, 8, 2] = (s[g], s[g+8]), zp u8 [N/16, G, 8] = z[g] | z[g+8] << 4.

    Holds every integer, zero point and scale in groups of 32, 64 or 128. N and K are padded to whole tiles with q = 0;
    padded rows have zero points 0 and scales 1, padded inputs belong to no group.
    """
    _check_group(weight.group_size)
    n, k = weight.shape
    rows, groups = tiles_of(n) * TILE_ROWS, weight.groups
    q = _padded(weight.q, rows, steps_of(k) * TILE_INPUTS, 0)
    scales = _padded(weight.scales, rows, groups, 1).reshape(-1, 2, HALF_ROWS, groups)
    zeros = _padded(weight.zeros, rows, groups, 0).reshape(-1, 2, HALF_ROWS, groups)
    words = pack_words(_fragments(q)).view(np.uint32)
    return {
        "qw": words.reshape(*words.shape[:2], 32, 4),
        "sc": np.ascontiguousarray(scales.transpose(0, 3, 2, 1)),
        "zp": np.ascontiguousarray((zeros[:, 0] | zeros[:, 1] << np.uint8(4)).transpose(0, 2, 1)),
    }


def unpack_t16(tensors: Tensors, shape: tuple[int, int], group_size: int) -> IntWeight:
    """The inverse of :func:`pack_t16`; the padding is not looked at."""
    _check_group(group_size)
    n, k = shape
    tiles, groups = tiles_of(n), k // group_size
    words = expect(tensors, "qw", np.uint32, (tiles, steps_of(k), 32, 4))
    scales = expect(tensors, "sc", np.float16, (tiles, groups, HALF_ROWS, 2)).transpose(0, 3, 2, 1)
    pairs = expect(tensors, "zp", np.uint8, (tiles, groups, HALF_ROWS)).transpose(0, 2, 1)
    zeros = np.stack([pairs & 0xF, pairs >> 4], axis=1)
    return IntWeight(
        np.ascontiguousarray(_rows(unpack_words(words.view(np.int32)))[:n, :k]),
        np.ascontiguousarray(zeros.reshape(-1, groups)[:n]),
        np.ascontiguousarray(scales.reshape(-1, groups)[:n]),
        group_size,
    )


def gate_up_order(ffn: int) -> Order:
    """Rows of [gate; up] so that each tile has 8 gate rows and then the same 8 up rows. ValueError unless ffn % 8 == 0.

    Row i of the packed weight is row ``order[i]`` of the two stacked: the kernel finds a channel's gate and up in one
    lane.
    """
    if ffn < 1 or ffn % HALF_ROWS:
        raise ValueError(f"{ffn} channels do not fill tiles of {HALF_ROWS} gate and {HALF_ROWS} up rows")
    channels = np.arange(ffn, dtype=np.int64).reshape(-1, 1, HALF_ROWS)
    return np.concatenate([channels, channels + ffn], axis=1).reshape(-1)


def qkv_order(heads: int, kv_heads: int, head_dim: int) -> Order:
    """Rows of [q; k; v] so that rotary pairs (d, d + D/2) are 8 rows apart in a tile; v keeps its order.

    A tile of a q or k head has dims d..d+7 and d+D/2..d+D/2+7. Row i of the packed weight is row ``order[i]`` of the
    three stacked. ValueError unless head_dim is a multiple of 16.
    """
    if heads < 1 or kv_heads < 1 or head_dim < 1 or head_dim % TILE_ROWS:
        raise ValueError(f"{heads} query and {kv_heads} key heads of {head_dim} do not fill tiles of {TILE_ROWS} rows")
    rotated, half = heads + kv_heads, head_dim // 2
    dims = np.arange(half, dtype=np.int64).reshape(-1, 1, HALF_ROWS)
    head = np.concatenate([dims, dims + half], axis=1).reshape(-1)
    starts = head_dim * np.arange(rotated, dtype=np.int64)
    values = np.arange(rotated * head_dim, (rotated + kv_heads) * head_dim, dtype=np.int64)
    return np.concatenate([(starts[:, None] + head).reshape(-1), values])


def reordered(weight: IntWeight, order: Order) -> IntWeight:
    """The weight with row ``order[i]`` as row i."""
    return IntWeight(weight.q[order], weight.zeros[order], weight.scales[order], weight.group_size, weight.bits)


def split_int8(weight: IntWeight) -> IntWeight:
    """An eight-bit weight [N, K] as a four-bit one [N, 2K] whose product with [x | x] is the same.

    (q − z)·s = (q_hi − z_hi)·16s + (q_lo − z_lo)·s with q = 16·q_hi + q_lo and z likewise: columns [hi | lo] with the
    scales [16s | s], all exact. ValueError for another number of bits, and for a scale whose 16-fold overflows f16.
    """
    if weight.bits != 8:
        raise ValueError(f"the weight has {weight.bits} bits, expected 8")
    largest = float(weight.scales.max())
    if largest > MAX_SPLIT_SCALE:
        raise ValueError(f"scales has the value {largest:g}, above {MAX_SPLIT_SCALE:g}: 16 times it overflows float16")
    return IntWeight(
        np.concatenate([weight.q >> np.uint8(4), weight.q & np.uint8(0xF)], axis=1),
        np.concatenate([weight.zeros >> np.uint8(4), weight.zeros & np.uint8(0xF)], axis=1),
        np.concatenate([weight.scales * np.float16(16), weight.scales], axis=1),
        weight.group_size,
    )


def _fragments(q: U8) -> U8:
    """Rows [16T, 64B] → [T, B, 32·4·8] in the order of lanes, words and nibbles."""
    # row = (tile, h, g); input = (step, s // 2, q, s % 2, p, e)
    split = q.reshape(-1, 2, 8, q.shape[1] // TILE_INPUTS, 2, 4, 2, 2, 2)
    order = split.transpose(0, 3, 2, 5, 4, 6, 8, 7, 1)  # tile, step, g, q, s // 2, s % 2, e, p, h
    return np.ascontiguousarray(order).reshape(split.shape[0], split.shape[3], -1)


def _rows(values: U8) -> U8:
    """The inverse of :func:`_fragments`, from values [T, B, 32, 32]."""
    tiles, steps = values.shape[:2]
    split = values.reshape(tiles, steps, 8, 4, 2, 2, 2, 2, 2)  # tile, step, g, q, s // 2, s % 2, e, p, h
    order = split.transpose(0, 8, 2, 1, 4, 3, 5, 7, 6)
    return np.ascontiguousarray(order).reshape(tiles * TILE_ROWS, steps * TILE_INPUTS)


def _padded(values: npt.NDArray[Scalar], rows: int, columns: int, fill: int) -> npt.NDArray[Scalar]:
    padded = np.full((rows, columns), fill, values.dtype)
    padded[: values.shape[0], : values.shape[1]] = values
    return padded


def _check_group(group_size: int) -> None:
    if group_size not in GROUP_SIZES:
        raise ValueError(f"group size {group_size} is not one of {', '.join(map(str, GROUP_SIZES))}")
