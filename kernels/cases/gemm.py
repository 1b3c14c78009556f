"""Launches of the GEMM family with known answers: every entry once, with ragged M, odd N and half tiles."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import MappingProxyType

import numpy as np

from kernels.cases.numbers import uniform
from kernels.cases.products import DTYPES, Outputs, Product, product
from kernels.cases.qkv import ROWS, into_second_slot
from kernels.kernel import Case
from kernels.launch.gemm import TileTokens, gemm_64, gemm_128, gemm_qkv_rope_kv, gemm_swiglu
from kernels.packing import gate_up_order
from kernels.reference import gemm as reference
from kernels.reference import gemv as single
from kernels.workbench import Workbench

# Group size, K (with groups of 32 half a tile at the end; with those of 64 fewer tiles than stages), tokens in tiles of
# 64 and of 128 (a rest of a warp, and more than one tile), rows of the plain product.
SHAPES = ((32, 352, 70, 71, 37), (64, 128, 11, 130, 70), (128, 256, 64, 97, 129))
CHANNELS = 40
CAPACITY = 136
GEMM: Mapping[TileTokens, Callable[..., None]] = MappingProxyType({64: gemm_64, 128: gemm_128})


def cases() -> Iterator[Case]:
    """Every entry of gemm.cu, gemm_swiglu.cu and gemm_qkv.cu."""
    tiles: tuple[TileTokens, ...] = (64, 128)
    for index, (group_size, k, *tokens, rows) in enumerate(SHAPES):
        for dtype in DTYPES:
            for tile, count in zip(tiles, tokens, strict=True):
                seed = 10_000 * index + 1000 * tile + (500 if dtype == "bf16" else 0)
                yield plain(product(seed, count, rows, k, group_size, dtype), tile)
                yield swiglu(product(seed + 200, count, 2 * CHANNELS, k, group_size, dtype), tile)
                yield qkv(product(seed + 300, count, ROWS, k, group_size, dtype), tile)


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
    entry = f"gemm_qkv_rope_kv_{tile}_{of.entry_suffix}"
    launcher = partial(gemm_qkv_rope_kv, tile=tile)
    return into_second_slot(of, "gemm_qkv_rope_kv", entry, launcher, CAPACITY, reference.RUN_INPUTS)
