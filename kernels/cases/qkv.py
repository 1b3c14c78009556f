"""The launch that makes queries, keys and values, for the cases of GEMV and GEMM: one small model's heads."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from kernels.arrays import from_host_dtype
from kernels.cases.cache import Cache, Side, decode_state, empty_cache
from kernels.cases.numbers import uniform
from kernels.cases.products import Outputs, Product
from kernels.kernel import Case
from kernels.packing import qkv_order
from kernels.reference.gemv import gemv_qkv_rope_kv, qkv_bounds
from kernels.workbench import Workbench

HEADS, KV_HEADS, HEAD_DIM = 3, 1, 64
ROWS = (HEADS + 2 * KV_HEADS) * HEAD_DIM
POSITION = 3
SIDES: tuple[Side, ...] = ("keys", "values")


def into_second_slot(
    of: Product, symbol: str, entry: str, launcher: Callable[..., None], capacity: int, run_inputs: int
) -> Case:
    """``launcher`` into the second of two slots, with a bias. run_inputs: that share an f32 sum before it is scaled."""
    w = of.dequantized()
    bias = uniform(3, (w.shape[0],), -1.0, 1.0).astype(np.float32)
    rope = rope_table(capacity, HEAD_DIM)
    tokens = of.x.shape[0]

    def run(bench: Workbench) -> Outputs:
        order = qkv_order(HEADS, KV_HEADS, HEAD_DIM)
        x, weight = of.upload(bench, order)
        cache = empty_cache(bench, KV_HEADS, HEAD_DIM, capacity, of.dtype, slots=2)
        q = bench.empty((tokens, HEADS, HEAD_DIM), of.dtype)
        turned = bench.upload(bias[order], "f32"), bench.upload(rope, "f32")
        state = decode_state(bench, POSITION, slot=1)
        launcher(bench.kernels, bench.stream, x, weight, *turned, state, q, cache.layer, heads=HEADS)
        rows = slice(POSITION, POSITION + tokens)
        written = sides_of(bench, cache, of, slot=1)
        return {"q": bench.download(q), **{side: data[:, rows].transpose(1, 0, 2) for side, data in written.items()}}

    sizes = {"heads": HEADS, "kv_heads": KV_HEADS}
    answers = gemv_qkv_rope_kv(of.x, w, bias, rope, POSITION, **sizes)
    bounds = qkv_bounds(of.x, w, bias, rope, POSITION, run_inputs, of.dtype, **sizes)
    names = ("q", *SIDES)
    expected, bound = dict(zip(names, answers, strict=True)), dict(zip(names, bounds, strict=True))
    return Case(symbol, entry, of.name, run, expected, bound)


def sides_of(bench: Workbench, cache: Cache, of: Product, slot: int) -> Outputs:
    """Keys and values [kv_heads, capacity, D] that a slot holds."""
    return {side: from_host_dtype(cache.read(bench, side, slot)[0], of.dtype) for side in SIDES}


def rope_table(positions: int, head_dim: int) -> npt.NDArray[np.float32]:
    """(cos, sin) of position · 10000^(-2i/D): f32 [positions, D/2, 2]."""
    frequencies = 10000.0 ** (-2.0 * np.arange(head_dim // 2) / head_dim)
    angles = np.arange(positions)[:, None] * frequencies
    return np.stack([np.cos(angles), np.sin(angles)], axis=2).astype(np.float32)
