"""Launches products of 1..8 tokens with an int4 weight, and what is fused behind them (csrc/gemv.cu)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kernels.arrays import DeviceArray, check_array
from kernels.driver.protocol import Stream
from kernels.errors import ArrayError
from kernels.kernel import Kernel
from kernels.launch.kv import KvLayer
from kernels.launch.products import WEIGHT_SIGNATURE, check_bias, check_gate_up, entries, pointer
from kernels.launch.qkv import QKV_SIGNATURE, QkvArrays
from kernels.launch.weights import T16Weight
from kernels.reference import gemv as reference
from kernels.state import MAX_STEP_TOKENS

if TYPE_CHECKING:
    from kernels.loading import Kernels

MAX_WARPS = 8
WARP_INPUTS = 512  # the least that a warp has, but for what is left over


def gemv(
    kernels: Kernels, stream: Stream, x: DeviceArray, w: T16Weight, y: DeviceArray, *, bias: DeviceArray | None = None
) -> None:
    """y = x · Wᵀ + bias.

    x T [M, K], M 1..8, T f16 or bf16; y T [M, N]; bias f32 [N]. Sums are f32, their order depends on K alone: a
    token's result is the same bits for every M. Raises ArrayError.
    """
    tokens = check_tokens(x, w)
    check_array("y", y, x.dtype, (tokens, w.n))
    check_bias(bias, w)
    launch_tiles(kernels, stream, "gemv", x, w, "PPiii", pointer(bias), y.ptr, tokens, w.n, w.k)


def gemv_residual(
    kernels: Kernels,
    stream: Stream,
    x: DeviceArray,
    w: T16Weight,
    residual: DeviceArray,
    *,
    bias: DeviceArray | None = None,
) -> None:
    """residual += x · Wᵀ + bias, in place: residual f32 [M, N]; otherwise as :func:`gemv`."""
    tokens = check_tokens(x, w)
    check_array("residual", residual, "f32", (tokens, w.n))
    check_bias(bias, w)
    launch_tiles(kernels, stream, "gemv_residual", x, w, "PPiii", pointer(bias), residual.ptr, tokens, w.n, w.k)


def gemv_swiglu(kernels: Kernels, stream: Stream, x: DeviceArray, w: T16Weight, y: DeviceArray) -> None:
    """y = silu(x · gateᵀ) · (x · upᵀ): w has the rows of both in ``gate_up_order``, y T [M, N/2]; else as gemv."""
    tokens = check_tokens(x, w)
    check_gate_up(w)
    check_array("y", y, x.dtype, (tokens, w.n // 2))
    launch_tiles(kernels, stream, "gemv_swiglu", x, w, "Piii", y.ptr, tokens, w.n, w.k)


def gemv_qkv_rope_kv(
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
) -> None:
    """Queries, keys and values of M tokens at once: q and k turned to their positions, k and v written to the cache.

    x T [M, K], M 1..8; w and bias f32 [N] (or None) in ``qkv_order``; rope f32 [positions, D/2, 2] = (cos, sin);
    state u8 [64] (DecodeState): token m is at position state.pos + m of slot state.slot; q T [M, heads, D], dims in
    their natural order; kv of dtype T. A position beyond the cache or the table sets STATUS_FULL and writes nothing.
    Raises ArrayError.
    """
    check_tokens(x, w)
    arguments = QkvArrays(bias, rope, state, q, kv, heads).arguments(x, w)
    launch_tiles(kernels, stream, "gemv_qkv_rope_kv", x, w, QKV_SIGNATURE, *arguments)


def warps_for(inputs: int) -> int:
    """Warps that share K (gemv_tile.cuh: GEMV_SHARE): of K alone, since the order of the sums follows from it."""
    return min(MAX_WARPS, -(-inputs // WARP_INPUTS))


def launch_tiles(
    kernels: Kernels, stream: Stream, symbol: str, x: DeviceArray, w: T16Weight, signature: str, *args: Any
) -> None:
    """Launch one block per tile of 16 rows: x and the weight's three arrays come before ``args``."""
    kernels.launch(
        f"{symbol}_g{w.group_size}_{x.dtype}",
        (w.tiles, 1, 1),
        (32 * warps_for(w.k), 1, 1),
        0,
        stream,
        WEIGHT_SIGNATURE + signature,
        x.ptr,
        w.qw.ptr,
        w.sc.ptr,
        w.zp.ptr,
        *args,
    )


def check_tokens(x: DeviceArray, w: T16Weight) -> int:
    """M of x T [M, K]. ArrayError outside 1..8 and for activations that the weight does not take."""
    check_array("x", x, ("f16", "bf16"), (None, w.k))
    tokens = x.shape[0]
    if tokens > MAX_STEP_TOKENS:
        raise ArrayError(f"x has {tokens} tokens, expected 1 to {MAX_STEP_TOKENS}", hint="more tokens are for gemm")
    return tokens


KERNELS = (
    Kernel("gemv", "gemv.cu", entries("gemv"), gemv, reference.gemv),
    Kernel("gemv_residual", "gemv.cu", entries("gemv_residual"), gemv_residual, reference.gemv_residual),
    Kernel("gemv_swiglu", "gemv.cu", entries("gemv_swiglu"), gemv_swiglu, reference.gemv_swiglu),
    Kernel("gemv_qkv_rope_kv", "gemv.cu", entries("gemv_qkv_rope_kv"), gemv_qkv_rope_kv, reference.gemv_qkv_rope_kv),
)
