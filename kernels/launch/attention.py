"""Launches attention over the KV cache: decode in splits with a combine (csrc/attn_decode.cu), causal prefill
(csrc/attn_prefill.cu)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kernels.arrays import Activation, DeviceArray, check_array
from kernels.driver.protocol import Stream
from kernels.errors import ArrayError
from kernels.kernel import Kernel
from kernels.launch.kv import HEAD_DIMS, KvDType, KvLayer, check_state
from kernels.reference import attention as reference
from kernels.state import MAX_STEP_TOKENS

if TYPE_CHECKING:
    from kernels.loading import Kernels

THREADS = 128
TILE_KEYS = 64  # positions of a tile of keys or values in shared memory
SPLIT_POSITIONS = 64
DECODE_ROWS = 16  # query rows of one pass of a decode block
PREFILL_ROWS = 64  # query rows of a prefill block
PARTIAL_STATISTICS = 4  # floats behind the values of a partial
MAX_RATIO = 8
ACTIVATIONS: tuple[Activation, ...] = ("f16", "bf16")


def split_positions(kv_heads: int) -> int:
    """Positions that one split covers: split i has those from i times that on. A constant of the model.

    64 for every model today: one split's keys and values are then a single load into shared memory, all in flight at
    once. The partial results add (D + 4) / (32 D) of the cache's bytes per query head and token that share them.
    """
    if kv_heads < 1:
        raise ArrayError(f"{kv_heads} KV heads, expected at least 1")
    return SPLIT_POSITIONS


def partials_shape(tokens: int, heads: int, head_dim: int, splits: int) -> tuple[int, int, int, int]:
    """Shape of the f32 array between attn_decode_split and attn_decode_combine.

    A row: head_dim values (sum of 2^(s - max) v), the largest score s in base 2, the sum of 2^(s - max), two unused.
    A split that a token does not see has -inf and 0, and its values mean nothing.
    """
    return tokens, heads, splits, head_dim + PARTIAL_STATISTICS


def attn_decode_split(
    kernels: Kernels,
    stream: Stream,
    q: DeviceArray,
    kv: KvLayer,
    state: DeviceArray,
    partials: DeviceArray,
    *,
    splits: int,
) -> None:
    """Attention of 1..8 query tokens over each split of the context; attn_decode_combine makes one result of them.

    q T [M, HQ, D], T as the cache's; kv f16 or bf16 with the tokens' own rows written; partials f32
    `partials_shape(M, HQ, D, splits)`. Query token m is at position state.pos + m and sees the positions up to its own.
    ``splits`` times `split_positions` must reach beyond the last: otherwise, or at the capacity, STATUS_FULL is set and
    the result has only the positions that there are. The result does not depend on ``splits`` nor on M. A NaN in a row
    of a later token of the same step reaches the earlier ones, as 0 · NaN. Raises ArrayError.
    """
    kv.check("kv", "f16", "bf16")
    _launch_split("attn_decode_split", kernels, stream, q, kv, state, partials, splits)


def attn_decode_split_i8(
    kernels: Kernels,
    stream: Stream,
    q: DeviceArray,
    kv: KvLayer,
    state: DeviceArray,
    partials: DeviceArray,
    *,
    splits: int,
) -> None:
    """`attn_decode_split` over an int8 cache. Keys enter exactly; a value is data · scale rounded to T."""
    kv.check("kv", "i8")
    _launch_split("attn_decode_split_i8", kernels, stream, q, kv, state, partials, splits)


def attn_decode_combine(
    kernels: Kernels, stream: Stream, partials: DeviceArray, o: DeviceArray, *, splits: int
) -> None:
    """o T [M, HQ, D] from the partials of attn_decode_split, which had the same ``splits``. Raises ArrayError."""
    check_array("o", o, ACTIVATIONS, (None, None, None))
    tokens, heads, head_dim = o.shape
    _check_sizes(tokens, head_dim, splits)
    check_array("partials", partials, "f32", partials_shape(tokens, heads, head_dim, splits))
    kernels.launch(
        f"attn_decode_combine_d{head_dim}_{o.dtype}",
        (heads, tokens, 1),
        (THREADS, 1, 1),
        0,
        stream,
        "PPi",
        partials.ptr,
        o.ptr,
        splits,
    )


def attn_prefill(
    kernels: Kernels, stream: Stream, q: DeviceArray, kv: KvLayer, state: DeviceArray, o: DeviceArray
) -> None:
    """Causal attention of a chunk of any number of query tokens over the cache, which has the chunk's own rows already.

    q and o T [M, HQ, D]; kv f16 or bf16 (T the same) or i8. Query token m is at position state.pos + m and sees the
    positions up to its own. At the capacity STATUS_FULL is set and the positions that there are count. A row's result
    does not depend on the others, but for a NaN in a later row of the same chunk (0 · NaN). Raises ArrayError.
    """
    kv.check("kv", "f16", "bf16", "i8")
    tokens, heads = _check_queries(q, kv)
    check_state(state)
    check_array("o", o, q.dtype, q.shape)
    symbol = "attn_prefill_i8" if kv.dtype == "i8" else "attn_prefill"
    blocks = -(-(tokens * heads // kv.kv_heads) // PREFILL_ROWS)
    _launch_queries(kernels, stream, symbol, blocks, prefill_shared_bytes(kv.head_dim, kv.dtype), q, kv, state, o)


def prefill_shared_bytes(head_dim: int, dtype: KvDType) -> int:
    """Dynamic shared memory of a prefill block (PrefillTiles of csrc/attn_prefill.cu)."""
    tile = TILE_KEYS * head_dim * 2
    queries = PREFILL_ROWS * head_dim * 2
    return queries + (2 * tile + TILE_KEYS * 4 if dtype == "i8" else 4 * tile)


def _launch_split(
    symbol: str,
    kernels: Kernels,
    stream: Stream,
    q: DeviceArray,
    kv: KvLayer,
    state: DeviceArray,
    partials: DeviceArray,
    splits: int,
) -> None:
    tokens, heads = _check_queries(q, kv)
    check_state(state)
    _check_sizes(tokens, kv.head_dim, splits)
    check_array("partials", partials, "f32", partials_shape(tokens, heads, kv.head_dim, splits))
    shared_bytes = split_shared_bytes(tokens * heads // kv.kv_heads, kv.head_dim, kv.dtype)
    _launch_queries(kernels, stream, symbol, splits, shared_bytes, q, kv, state, partials)


def _launch_queries(
    kernels: Kernels,
    stream: Stream,
    symbol: str,
    blocks: int,
    shared_bytes: int,
    q: DeviceArray,
    kv: KvLayer,
    state: DeviceArray,
    out: DeviceArray,
) -> None:
    """Launch ``blocks`` blocks for every KV head, with checked arrays."""
    tokens, heads, head_dim = q.shape
    kernels.launch(
        f"{symbol}_d{head_dim}_{q.dtype}",
        (blocks, kv.kv_heads, 1),
        (THREADS, 1, 1),
        shared_bytes,
        stream,
        "PPPiiPPii",
        q.ptr,
        kv.keys.ptr,
        kv.values.ptr,
        kv.kv_heads,
        kv.capacity,
        state.ptr,
        out.ptr,
        tokens,
        heads // kv.kv_heads,
    )


def split_shared_bytes(rows: int, head_dim: int, dtype: KvDType) -> int:
    """Dynamic shared memory of a decode block (SplitTiles of csrc/attn_decode.cu) for ``rows`` query rows."""
    query_rows = -(-rows // DECODE_ROWS) * DECODE_ROWS
    tiles = (query_rows + 2 * TILE_KEYS) * head_dim * 2 + DECODE_ROWS * TILE_KEYS * 2
    statistics = 2 * (THREADS // 32) * DECODE_ROWS * 4
    return tiles + statistics + (TILE_KEYS * 4 if dtype == "i8" else 0)


def _check_queries(q: DeviceArray, kv: KvLayer) -> tuple[int, int]:
    """Number of tokens and of query heads, checked against the cache."""
    check_array("q", q, ACTIVATIONS, (None, None, kv.head_dim))
    tokens, heads, _ = q.shape
    if kv.dtype not in ("i8", q.dtype):
        raise ArrayError(f"q is {q.dtype} and the cache {kv.dtype}, expected the same type or a cache of i8")
    if kv.staged:
        raise ArrayError("kv holds the tokens of one step (staged=True), expected a cache")
    if heads % kv.kv_heads or heads > MAX_RATIO * kv.kv_heads:
        raise ArrayError(
            f"{heads} query heads on {kv.kv_heads} KV heads, expected a multiple of them up to {MAX_RATIO} times"
        )
    return tokens, heads


def _check_sizes(tokens: int, head_dim: int, splits: int) -> None:
    if tokens > MAX_STEP_TOKENS:
        raise ArrayError(f"{tokens} tokens in a decode step, expected 1 to {MAX_STEP_TOKENS}")
    if head_dim not in HEAD_DIMS:
        raise ArrayError(f"heads of {head_dim}, expected {' or '.join(map(str, HEAD_DIMS))}")
    if splits < 1:
        raise ArrayError(f"{splits} splits, expected at least 1")


def _entries(symbol: str) -> tuple[str, ...]:
    return tuple(f"{symbol}_d{head_dim}_{dtype}" for head_dim in HEAD_DIMS for dtype in ACTIVATIONS)


KERNELS = (
    Kernel(
        "attn_decode_split",
        "attn_decode.cu",
        _entries("attn_decode_split"),
        attn_decode_split,
        reference.split_partials,
    ),
    Kernel(
        "attn_decode_split_i8",
        "attn_decode.cu",
        _entries("attn_decode_split_i8"),
        attn_decode_split_i8,
        reference.split_partials,
    ),
    Kernel(
        "attn_decode_combine",
        "attn_decode.cu",
        _entries("attn_decode_combine"),
        attn_decode_combine,
        reference.combine,
    ),
    Kernel(
        "attn_prefill",
        "attn_prefill.cu",
        _entries("attn_prefill") + _entries("attn_prefill_i8"),
        attn_prefill,
        reference.attention,
    ),
)
