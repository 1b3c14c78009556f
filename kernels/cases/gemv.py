"""Launches of the GEMV family with known answers: every entry once, with ragged M, odd N and half tiles."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kernels.arrays import Activation, DeviceArray, from_host_dtype
from kernels.cases.cache import Side, decode_state, empty_cache, rounded, status_of
from kernels.cases.numbers import integers, uniform
from kernels.kernel import F64, Case
from kernels.launch.gemv import MAX_WARPS, WARP_INPUTS, gemv, gemv_qkv_rope_kv, gemv_residual, gemv_swiglu
from kernels.launch.weights import T16Weight, upload_t16
from kernels.packing import IntWeight, gate_up_order, pack, qkv_order, reordered
from kernels.packing.t16 import TILE_ROWS, Order
from kernels.reference import gemv as reference
from kernels.state import STATUS_FULL
from kernels.workbench import Workbench

Outputs = Mapping[str, npt.NDArray[Any]]
# Group size, K (with groups of 32 half a tile at the end; for several warps, and steps that do not fill a batch), M.
SHAPES = ((32, 672, 5), (64, 1216, 8), (128, 896, 1))
DTYPES: tuple[Activation, ...] = ("f16", "bf16")
ODD_ROWS = 37
CHANNELS = 24
HEADS, KV_HEADS, HEAD_DIM = 3, 1, 64
CAPACITY, POSITION = 12, 3
SIDES: tuple[Side, ...] = ("keys", "values")


@dataclass(frozen=True, slots=True)
class Product:
    """Activations x [M, K], values that T holds, and a weight [N, K] with its rows in natural order."""

    x: F64
    weight: IntWeight
    dtype: Activation

    @property
    def entry_suffix(self) -> str:
        """End of the names of the entries that take it."""
        return f"g{self.weight.group_size}_{self.dtype}"

    @property
    def name(self) -> str:
        """Its sizes."""
        return f"M{self.x.shape[0]} N{self.weight.shape[0]} K{self.weight.shape[1]}"

    def dequantized(self) -> F64:
        """The weight, exactly."""
        return reference.dequantized(self.weight)

    def upload(self, bench: Workbench, order: Order | None = None) -> tuple[DeviceArray, T16Weight]:
        """x and the weight, its rows in ``order``, in device memory."""
        weight = self.weight if order is None else reordered(self.weight, order)
        w = upload_t16(pack(weight, "t16"), *weight.shape, weight.group_size, bench.upload)
        return bench.upload(self.x, self.dtype), w


def product(seed: int, tokens: int, n: int, k: int, group_size: int, dtype: Activation) -> Product:
    """Random integers, zero points of 0..15, scales of 0.002..0.03 and activations of -1..1."""
    groups = (n, k // group_size)
    weight = IntWeight(
        integers(seed, (n, k), 0, 16).astype(np.uint8),
        integers(seed + 1, groups, 0, 16).astype(np.uint8),
        uniform(seed + 2, groups, 0.002, 0.03).astype(np.float16),
        group_size,
    )
    return Product(rounded(uniform(seed + 3, (tokens, k), -1.0, 1.0), dtype), weight, dtype)


def cases() -> Iterator[Case]:
    """Every entry of gemv.cu."""
    for index, (group_size, k, tokens) in enumerate(SHAPES):
        for dtype in DTYPES:
            seed = 1000 * index + (500 if dtype == "bf16" else 0)
            yield plain(product(seed, tokens, ODD_ROWS, k, group_size, dtype))
            yield residual(product(seed + 100, tokens, ODD_ROWS, k, group_size, dtype))
            yield swiglu(product(seed + 200, tokens, 2 * CHANNELS, k, group_size, dtype))
            rows = (HEADS + 2 * KV_HEADS) * HEAD_DIM
            yield qkv(product(seed + 300, tokens, rows, k, group_size, dtype))
    yield plain(product(4000, 2, TILE_ROWS, WARP_INPUTS * MAX_WARPS, 32, "f16"))  # as many warps as a block may have
    yield qkv_beyond(product(4100, 3, (HEADS + 2 * KV_HEADS) * HEAD_DIM, 96, 32, "f16"))


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
    w = of.dequantized()
    bias = uniform(3, (w.shape[0],), -1.0, 1.0).astype(np.float32)
    rope = rope_table(CAPACITY, HEAD_DIM)
    tokens = of.x.shape[0]

    def run(bench: Workbench) -> Outputs:
        order = qkv_order(HEADS, KV_HEADS, HEAD_DIM)
        x, weight = of.upload(bench, order)
        cache = empty_cache(bench, KV_HEADS, HEAD_DIM, CAPACITY, of.dtype, slots=2)
        q = bench.empty((tokens, HEADS, HEAD_DIM), of.dtype)
        gemv_qkv_rope_kv(
            bench.kernels,
            bench.stream,
            x,
            weight,
            bench.upload(bias[order], "f32"),
            bench.upload(rope, "f32"),
            decode_state(bench, POSITION, slot=1),
            q,
            cache.layer,
            heads=HEADS,
        )
        rows = slice(POSITION, POSITION + tokens)
        written = {side: from_host_dtype(cache.read(bench, side, 1)[0], of.dtype)[:, rows] for side in SIDES}
        return {"q": bench.download(q), **{side: data.transpose(1, 0, 2) for side, data in written.items()}}

    names = ("q", *SIDES)
    sizes = {"heads": HEADS, "kv_heads": KV_HEADS}
    answers = reference.gemv_qkv_rope_kv(of.x, w, bias, rope, POSITION, **sizes)
    bounds = reference.qkv_bounds(of.x, w, bias, rope, POSITION, of.weight.group_size, of.dtype, **sizes)
    entry = f"gemv_qkv_rope_kv_{of.entry_suffix}"
    expected, bound = dict(zip(names, answers, strict=True)), dict(zip(names, bounds, strict=True))
    return Case("gemv_qkv_rope_kv", entry, of.name, run, expected, bound)


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
        written = {side: from_host_dtype(cache.read(bench, side, 0)[0], of.dtype) for side in SIDES}
        return {"q": bench.download(q), "status": np.array([status_of(bench, state)]), **written}

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


def rope_table(positions: int, head_dim: int) -> npt.NDArray[np.float32]:
    """(cos, sin) of position · 10000^(-2i/D): f32 [positions, D/2, 2]."""
    frequencies = 10000.0 ** (-2.0 * np.arange(head_dim // 2) / head_dim)
    angles = np.arange(positions)[:, None] * frequencies
    return np.stack([np.cos(angles), np.sin(angles)], axis=2).astype(np.float32)
