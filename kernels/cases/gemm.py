"""Launches of the GEMM family with known answers: every entry once, with ragged M, odd N and half tiles."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType

import numpy as np

from kernels.arrays import from_host_dtype
from kernels.cases.cache import decode_state, empty_cache
from kernels.cases.gemv import DTYPES, HEAD_DIM, HEADS, KV_HEADS, SIDES, Outputs, Product, product, rope_table
from kernels.cases.numbers import uniform
from kernels.kernel import Case
from kernels.launch.gemm import TileTokens, gemm_64, gemm_128, gemm_qkv_rope_kv, gemm_swiglu
from kernels.packing import gate_up_order, qkv_order
from kernels.reference import gemm as reference
from kernels.reference import gemv as single
from kernels.workbench import Workbench

# Group size, K (with groups of 32 half a tile at the end; with those of 64 fewer tiles than stages), tokens in tiles of
# 64 and of 128 (a rest of a warp, and more than one tile), rows of the plain product.
SHAPES = ((32, 352, 70, 71, 37), (64, 128, 11, 130, 70), (128, 256, 64, 97, 129))
CHANNELS = 40
CAPACITY, POSITION = 136, 3
GEMM: Mapping[TileTokens, Callable[..., None]] = MappingProxyType({64: gemm_64, 128: gemm_128})


def cases() -> Iterator[Case]:
    """Every entry of gemm.cu, gemm_swiglu.cu and gemm_qkv.cu."""
    tiles: tuple[TileTokens, ...] = (64, 128)
    qkv_rows = (HEADS + 2 * KV_HEADS) * HEAD_DIM
    for index, (group_size, k, *tokens, rows) in enumerate(SHAPES):
        for dtype in DTYPES:
            for tile, count in zip(tiles, tokens, strict=True):
                seed = 10_000 * index + 1000 * tile + (500 if dtype == "bf16" else 0)
                yield plain(product(seed, count, rows, k, group_size, dtype), tile)
                yield swiglu(product(seed + 200, count, 2 * CHANNELS, k, group_size, dtype), tile)
                yield qkv(product(seed + 300, count, qkv_rows, k, group_size, dtype), tile)


def plain(of: Product, tile: TileTokens) -> Case:
    """gemm_64 or gemm_128 into y, with a bias, and added to a residual, without."""
    w = of.dequantized()
    shape = of.x.shape[0], w.shape[0]
    bias = uniform(1, (w.shape[0],), -1.0, 1.0).astype(np.float32)
    before = uniform(2, shape, -4.0, 4.0).astype(np.float32)

    def run(bench: Workbench) -> Outputs:
        x, weight = of.upload(bench)
        y, residual = bench.empty(shape, of.dtype), bench.upload(before, "f32")
        GEMM[tile](bench.kernels, bench.stream, x, weight, y, bias=bench.upload(bias, "f32"))
        GEMM[tile](bench.kernels, bench.stream, x, weight, None, residual=residual)
        return {"y": bench.download(y), "residual": bench.download(residual)}

    y, after = reference.gemm(of.x, w, bias=bias), reference.gemm(of.x, w, residual=before)
    bounds = {
        "y": single.rounding(y, reference.accumulation(of.x, w, bias=bias), of.dtype),
        "residual": single.rounding(after, reference.accumulation(of.x, w), "f32"),
    }
    symbol = f"gemm_{tile}"
    return Case(symbol, f"{symbol}_{of.entry_suffix}", of.name, run, {"y": y, "residual": after}, bounds)


def swiglu(of: Product, tile: TileTokens) -> Case:
    """gemm_swiglu."""
    w = of.dequantized()
    channels = w.shape[0] // 2

    def run(bench: Workbench) -> Outputs:
        x, weight = of.upload(bench, gate_up_order(channels))
        y = bench.empty((of.x.shape[0], channels), of.dtype)
        gemm_swiglu(bench.kernels, bench.stream, x, weight, y, tile=tile)
        return {"y": bench.download(y)}

    bound = single.swiglu_bound(of.x, w, reference.RUN_INPUTS, of.dtype)
    entry = f"gemm_swiglu_{tile}_{of.entry_suffix}"
    return Case("gemm_swiglu", entry, of.name, run, {"y": reference.gemm_swiglu(of.x, w)}, {"y": bound})


def qkv(of: Product, tile: TileTokens) -> Case:
    """gemm_qkv_rope_kv into the second of two slots, with a bias."""
    w = of.dequantized()
    bias = uniform(3, (w.shape[0],), -1.0, 1.0).astype(np.float32)
    rope = rope_table(CAPACITY, HEAD_DIM)
    tokens = of.x.shape[0]

    def run(bench: Workbench) -> Outputs:
        order = qkv_order(HEADS, KV_HEADS, HEAD_DIM)
        x, weight = of.upload(bench, order)
        cache = empty_cache(bench, KV_HEADS, HEAD_DIM, CAPACITY, of.dtype, slots=2)
        q = bench.empty((tokens, HEADS, HEAD_DIM), of.dtype)
        turned = bench.upload(bias[order], "f32"), bench.upload(rope, "f32")
        state = decode_state(bench, POSITION, slot=1)
        gemm_qkv_rope_kv(bench.kernels, bench.stream, x, weight, *turned, state, q, cache.layer, heads=HEADS, tile=tile)
        rows = slice(POSITION, POSITION + tokens)
        written = {side: from_host_dtype(cache.read(bench, side, 1)[0], of.dtype)[:, rows] for side in SIDES}
        return {"q": bench.download(q), **{side: data.transpose(1, 0, 2) for side, data in written.items()}}

    sizes = {"heads": HEADS, "kv_heads": KV_HEADS}
    answers = reference.gemm_qkv_rope_kv(of.x, w, bias, rope, POSITION, **sizes)
    bounds = single.qkv_bounds(of.x, w, bias, rope, POSITION, reference.RUN_INPUTS, of.dtype, **sizes)
    names = ("q", *SIDES)
    entry = f"gemm_qkv_rope_kv_{tile}_{of.entry_suffix}"
    expected, bound = dict(zip(names, answers, strict=True)), dict(zip(names, bounds, strict=True))
    return Case("gemm_qkv_rope_kv", entry, of.name, run, expected, bound)
