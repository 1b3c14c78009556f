"""Launches products of many tokens with an int4 weight, and what is fused behind them (csrc/gemm*.cu).

Any number of tokens is right; up to eight, kernels.launch.gemv is faster.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from kernels.arrays import DeviceArray, check_array
from kernels.driver.protocol import Stream
from kernels.errors import ArrayError
from kernels.kernel import Kernel
from kernels.launch.kv import KvLayer
from kernels.launch.products import WEIGHT_SIGNATURE, check_bias, check_gate_up, entries, pointer
from kernels.launch.qkv import QKV_SIGNATURE, QkvArrays
from kernels.launch.weights import T16Weight
from kernels.reference import gemm as reference

if TYPE_CHECKING:
    from kernels.loading import Kernels

TileTokens = Literal[64, 128]
STAGES: dict[TileTokens, int] = {64: 4, 128: 2}  # as in csrc/gemm_tile.cuh
THREADS = 128
TILE_ROWS = 64  # rows of the weight per block
STAGE_CHUNKS = 8  # of 16 bytes, per token
WEIGHT_CHUNKS = 128  # of the weight, per stage
MAX_TOKENS = 65535 * 64  # by the grid's second dimension


def gemm_64(
    kernels: Kernels,
    stream: Stream,
    x: DeviceArray,
    w: T16Weight,
    y: DeviceArray | None,
    *,
    bias: DeviceArray | None = None,
    residual: DeviceArray | None = None,
) -> None:
    """y = x · Wᵀ + bias, or with ``residual`` instead of y: residual += x · Wᵀ + bias, in tiles of 64 tokens.

    x T [M, K], T f16 or bf16; y T [M, N]; bias f32 [N]; residual f32 [M, N]. Weights are exact, sums f32, and their
    order depends on K alone: a token's result is the same bits for every M and both tiles. Raises ArrayError.
    """
    _gemm(kernels, stream, 64, x, w, y, bias, residual)


def gemm_128(
    kernels: Kernels,
    stream: Stream,
    x: DeviceArray,
    w: T16Weight,
    y: DeviceArray | None,
    *,
    bias: DeviceArray | None = None,
    residual: DeviceArray | None = None,
) -> None:
    """:func:`gemm_64` in tiles of 128 tokens."""
    _gemm(kernels, stream, 128, x, w, y, bias, residual)


def gemm(
    kernels: Kernels,
    stream: Stream,
    x: DeviceArray,
    w: T16Weight,
    y: DeviceArray | None,
    *,
    bias: DeviceArray | None = None,
    residual: DeviceArray | None = None,
) -> None:
    """:func:`gemm_64` or :func:`gemm_128`, by the shape."""
    check_array("x", x, ("f16", "bf16"), (None, w.k))
    _gemm(kernels, stream, _tile(kernels, x, w), x, w, y, bias, residual)


def gemm_swiglu(
    kernels: Kernels,
    stream: Stream,
    x: DeviceArray,
    w: T16Weight,
    y: DeviceArray,
    *,
    tile: TileTokens | None = None,
) -> None:
    """y = silu(x · gateᵀ) · (x · upᵀ): w has the rows of both in ``gate_up_order``, y T [M, N/2]; else as gemm_64.

    tile: tokens per tile; None chooses by the shape.
    """
    tokens = _check_tokens(x, w)
    check_gate_up(w)
    check_array("y", y, x.dtype, (tokens, w.n // 2))
    _launch(kernels, stream, "gemm_swiglu", tile or _tile(kernels, x, w), x, w, "Piii", y.ptr, tokens, w.n, w.k)


def gemm_qkv_rope_kv(
    kernels: Kernels,
    stream: Stream,
    x: DeviceArray,
    w: T16Weight,
    bias: DeviceArray | None,
    rope: DeviceArray,
    state: DeviceArray,
    q: DeviceArray,
    kv: KvLayer,
    *,
    heads: int,
    tile: TileTokens | None = None,
) -> None:
    """As gemv_qkv_rope_kv, for any number of tokens: q and k turned to their positions, k and v written to the cache.

    tile: tokens per tile; None chooses by the shape.
    """
    _check_tokens(x, w)
    arguments = QkvArrays(bias, rope, state, q, kv, heads).arguments(x, w)
    _launch(kernels, stream, "gemm_qkv_rope_kv", tile or _tile(kernels, x, w), x, w, QKV_SIGNATURE, *arguments)


def tile_tokens(tokens: int, rows: int, multiprocessors: int) -> TileTokens:
    """Tokens per tile: 128 read the weight half as often, 64 where 128 would leave multiprocessors without work."""
    blocks = -(-tokens // 128) * -(-rows // TILE_ROWS)
    return 128 if tokens > 64 and blocks >= multiprocessors else 64


def _gemm(
    kernels: Kernels,
    stream: Stream,
    tile: TileTokens,
    x: DeviceArray,
    w: T16Weight,
    y: DeviceArray | None,
    bias: DeviceArray | None,
    residual: DeviceArray | None,
) -> None:
    tokens = _check_tokens(x, w)
    if (y is None) == (residual is None):
        raise ArrayError("gemm writes y or adds to residual: expected one of the two")
    if y is not None:
        check_array("y", y, x.dtype, (tokens, w.n))
    if residual is not None:
        check_array("residual", residual, "f32", (tokens, w.n))
    check_bias(bias, w)
    outputs = (pointer(bias), pointer(y), pointer(residual))
    _launch(kernels, stream, "gemm", tile, x, w, "PPPiii", *outputs, tokens, w.n, w.k)


def _check_tokens(x: DeviceArray, w: T16Weight) -> int:
    check_array("x", x, ("f16", "bf16"), (None, w.k))
    tokens = x.shape[0]
    if tokens > MAX_TOKENS:
        raise ArrayError(f"x has {tokens} tokens, expected up to {MAX_TOKENS}")
    return tokens


def _tile(kernels: Kernels, x: DeviceArray, w: T16Weight) -> TileTokens:
    return tile_tokens(x.shape[0], w.n, kernels.device.multiprocessors)


def _launch(
    kernels: Kernels,
    stream: Stream,
    symbol: str,
    tile: TileTokens,
    x: DeviceArray,
    w: T16Weight,
    signature: str,
    *args: Any,
) -> None:
    """One block per tile; x and the weight's three arrays come before ``args``."""
    kernels.launch(
        f"{symbol}_{tile}_g{w.group_size}_{x.dtype}",
        (-(-w.n // TILE_ROWS), -(-x.shape[0] // tile), 1),
        (THREADS, 1, 1),
        STAGES[tile] * (tile * STAGE_CHUNKS + WEIGHT_CHUNKS) * 16,
        stream,
        WEIGHT_SIGNATURE + signature,
        x.ptr,
        w.qw.ptr,
        w.sc.ptr,
        w.zp.ptr,
        *args,
    )


def _both_tiles(symbol: str) -> tuple[str, ...]:
    return entries(f"{symbol}_64") + entries(f"{symbol}_128")


KERNELS = (
    Kernel("gemm_64", "gemm.cu", entries("gemm_64"), gemm_64, reference.gemm),
    Kernel("gemm_128", "gemm.cu", entries("gemm_128"), gemm_128, reference.gemm),
    Kernel("gemm_swiglu", "gemm_swiglu.cu", _both_tiles("gemm_swiglu"), gemm_swiglu, reference.gemm_swiglu),
    Kernel(
        "gemm_qkv_rope_kv",
        "gemm_qkv.cu",
        _both_tiles("gemm_qkv_rope_kv"),
        gemm_qkv_rope_kv,
        reference.gemm_qkv_rope_kv,
    ),
)
