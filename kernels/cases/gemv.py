"""Launches of the GEMV family with known answers: every entry once, with ragged M, odd N and half tiles."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from kernels.cases.cache import decode_state, empty_cache, status_of
from kernels.cases.numbers import uniform
from kernels.cases.products import DTYPES, ODD_ROWS, Outputs, Product, product
from kernels.cases.qkv import HEAD_DIM, HEADS, KV_HEADS, ROWS, SIDES, into_second_slot, rope_table, sides_of
from kernels.kernel import F64, Case
from kernels.launch.gemv import MAX_WARPS, WARP_INPUTS, gemv, gemv_qkv_rope_kv, gemv_residual, gemv_swiglu
from kernels.packing import gate_up_order, qkv_order
from kernels.packing.t16 import TILE_ROWS
from kernels.reference import gemv as reference
from kernels.state import STATUS_FULL
from kernels.workbench import Workbench

# Group size, K (with groups of 32 half a tile at the end; for several warps, and steps that do not fill a batch), M.
SHAPES = ((32, 672, 5), (64, 1216, 8), (128, 896, 1))
CHANNELS = 24
CAPACITY = 12


def cases() -> Iterator[Case]:
    """Every entry of gemv.cu."""
    for index, (group_size, k, tokens) in enumerate(SHAPES):
        for dtype in DTYPES:
            seed = 1000 * index + (500 if dtype == "bf16" else 0)
            yield plain(product(seed, tokens, ODD_ROWS, k, group_size, dtype))
            yield residual(product(seed + 100, tokens, ODD_ROWS, k, group_size, dtype))
            yield swiglu(product(seed + 200, tokens, 2 * CHANNELS, k, group_size, dtype))
            yield qkv(product(seed + 300, tokens, ROWS, k, group_size, dtype))
    yield plain(product(4000, 2, TILE_ROWS, WARP_INPUTS * MAX_WARPS, 32, "f16"))  # as many warps as a block may have
    yield qkv_beyond(product(4100, 3, ROWS, 96, 32, "f16"))


def plain(of: Product) -> Case:
    """gemv with a bias."""
    w = of.dequantized()
    bias = uniform(1, (w.shape[0],), -1.0, 1.0).astype(np.float32)

    def run(bench: Workbench) -> Outputs:
        x, weight = of.upload(bench)
        y = bench.empty((of.x.shape[0], weight.n), of.dtype)
        gemv(bench.kernels, bench.stream, x, weight, y, bias=bench.upload(bias, "f32"))
        return {"y": bench.download(y)}

    y = reference.gemv(of.x, w, bias=bias)
    error = reference.accumulation(of.x, w, of.weight.group_size, bias=bias)
    bound = reference.rounding(y, error, of.dtype)
    return Case("gemv", f"gemv_{of.entry_suffix}", of.name, run, {"y": y}, {"y": bound})


def residual(of: Product) -> Case:
    """gemv_residual without a bias."""
    w = of.dequantized()
    before = uniform(2, (of.x.shape[0], w.shape[0]), -4.0, 4.0).astype(np.float32)

    def run(bench: Workbench) -> Outputs:
        x, weight = of.upload(bench)
        residual = bench.upload(before, "f32")
        gemv_residual(bench.kernels, bench.stream, x, weight, residual)
        return {"residual": bench.download(residual)}

    after = reference.gemv_residual(of.x, w, before)
    bound = reference.rounding(after, reference.accumulation(of.x, w, of.weight.group_size), "f32")
    entry = f"gemv_residual_{of.entry_suffix}"
    return Case("gemv_residual", entry, of.name, run, {"residual": after}, {"residual": bound})


def swiglu(of: Product) -> Case:
    """gemv_swiglu."""
    w = of.dequantized()
    channels = w.shape[0] // 2

    def run(bench: Workbench) -> Outputs:
        x, weight = of.upload(bench, gate_up_order(channels))
        y = bench.empty((of.x.shape[0], channels), of.dtype)
        gemv_swiglu(bench.kernels, bench.stream, x, weight, y)
        return {"y": bench.download(y)}

    y = reference.gemv_swiglu(of.x, w)
    bound = reference.swiglu_bound(of.x, w, of.weight.group_size, of.dtype)
    return Case("gemv_swiglu", f"gemv_swiglu_{of.entry_suffix}", of.name, run, {"y": y}, {"y": bound})


def qkv(of: Product) -> Case:
    """gemv_qkv_rope_kv into the second of two slots, with a bias."""
    entry = f"gemv_qkv_rope_kv_{of.entry_suffix}"
    return into_second_slot(of, "gemv_qkv_rope_kv", entry, gemv_qkv_rope_kv, CAPACITY, of.weight.group_size)


def qkv_beyond(of: Product) -> Case:
    """gemv_qkv_rope_kv where the cache has room for the first token alone: the rest sets STATUS_FULL alone."""
    w, last = of.dequantized(), CAPACITY - 1
    bias = np.zeros(w.shape[0], np.float32)
    rope = rope_table(CAPACITY, HEAD_DIM)
    tokens = of.x.shape[0]

    def run(bench: Workbench) -> Outputs:
        x, weight = of.upload(bench, qkv_order(HEADS, KV_HEADS, HEAD_DIM))
        cache = empty_cache(bench, KV_HEADS, HEAD_DIM, CAPACITY, of.dtype)
        q, state = bench.empty((tokens, HEADS, HEAD_DIM), of.dtype), decode_state(bench, last)
        table = bench.upload(rope, "f32")
        gemv_qkv_rope_kv(bench.kernels, bench.stream, x, weight, None, table, state, q, cache.layer, heads=HEADS)
        status = np.array([status_of(bench, state)])
        return {"q": bench.download(q), "status": status, **sides_of(bench, cache, of, slot=0)}

    sizes = {"heads": HEADS, "kv_heads": KV_HEADS}
    one = reference.gemv_qkv_rope_kv(of.x[:1], w, bias, rope, last, **sizes)
    limits = reference.qkv_bounds(of.x[:1], w, bias, rope, last, of.weight.group_size, of.dtype, **sizes)
    shapes = ((tokens, HEADS, HEAD_DIM), *[(KV_HEADS, CAPACITY, HEAD_DIM)] * 2)
    expected: dict[str, npt.NDArray[Any]] = {"status": np.array([STATUS_FULL])}
    bound: dict[str, F64] = {}
    for name, shape, values, limit in zip(("q", *SIDES), shapes, one, limits, strict=True):
        expected[name], bound[name] = np.full(shape, np.nan), np.zeros(shape)
        row = np.s_[0] if name == "q" else np.s_[:, last]
        expected[name][row], bound[name][row] = values[0], limit[0]
    entry = f"gemv_qkv_rope_kv_{of.entry_suffix}"
    return Case("gemv_qkv_rope_kv", entry, f"{of.name} beyond the cache", run, expected, bound)
