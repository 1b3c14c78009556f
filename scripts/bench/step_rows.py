"""Benchmark rows of what surrounds the products: norm, embeddings, attention, cache, sampling, tiles."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from kernels.launch.attention import partials_shape, split_positions
from kernels.launch.kv import KvDType, KvLayer
from kernels.launch.resize import AxisWeights, ResizePlan
from kernels.registry import KERNELS
from kernels.state import HEAD_PARTIAL, RING_ENTRY, SAMPLE_PARAMS
from scripts.bench.device_timing import Launch
from scripts.bench.kernel_data import Benchmark, Lab, rotating
from scripts.bench.shapes import DecoderShape

RING = 64
IMAGE_ROWS = 64
FILTERS = {"temperature": 0.7, "top_k": 40, "top_p": 0.9, "min_p": 0.0, "repetition_penalty": 1.0, "seed": 1}
ONE = 2**22  # a weight of 1 in resize_normalize


def rmsnorm(model: DecoderShape, m: int) -> Iterator[Benchmark]:
    """The residual stream with an addition before it: f32 read and written, two 16-bit rows."""

    def prepare(lab: Lab) -> Launch:
        residual, gamma = lab.values(m, model.hidden, dtype="f32"), lab.values(model.hidden, dtype="f32")
        delta, y = lab.values(m, model.hidden), lab.empty(m, model.hidden)
        bench, launcher = lab.bench, KERNELS["rmsnorm_residual"].launcher
        return lambda index: launcher(bench.kernels, bench.stream, residual, gamma, y, eps=1e-6, delta=delta)

    yield Benchmark("rmsnorm_residual", model.name, {"m": m, "hidden": model.hidden}, 12 * m * model.hidden, 0, prepare)


def embed(symbol: str, model: DecoderShape, m: int) -> Iterator[Benchmark]:
    """Rows of a table of 1024 tokens: its size does not matter to a lookup."""
    size = 1 if symbol == "embed_i8" else 2

    def prepare(lab: Lab) -> Launch:
        table = lab.values(1024, model.hidden, dtype="i8" if size == 1 else lab.dtype)
        scales = (lab.values(1024, dtype="f32"),) if size == 1 else ()
        state, residual = lab.state(0), lab.empty(m, model.hidden, dtype="f32")
        bench, launcher = lab.bench, KERNELS[symbol].launcher
        return lambda index: launcher(bench.kernels, bench.stream, table, *scales, state, residual)

    yield Benchmark(symbol, model.name, {"m": m, "hidden": model.hidden}, (4 + size) * m * model.hidden, 0, prepare)


def fuse(model: DecoderShape, m: int) -> Iterator[Benchmark]:
    """A prompt of m rows, half of them (at most 64) of a picture."""
    images = min(IMAGE_ROWS, m // 2)

    def prepare(lab: Lab) -> Launch:
        ids = np.arange(m, dtype=np.int32) % 1024
        ids[:images] = -1 - np.arange(images)
        uploaded = lab.bench.upload(ids, "i32")
        table, pictures = lab.values(1024, model.hidden), lab.values(max(images, 1), model.hidden, dtype="f32")
        out, state = lab.empty(m, model.hidden, dtype="f32"), lab.state(0)
        bench, launcher = lab.bench, KERNELS["fuse_image_text"].launcher
        return lambda index: launcher(bench.kernels, bench.stream, uploaded, table, None, pictures, out, state)

    yield Benchmark("fuse_image_text", model.name, {"m": m, "hidden": model.hidden}, 6 * m * model.hidden, 0, prepare)


def attention_split(symbol: str, model: DecoderShape, m: int, context: int) -> Iterator[Benchmark]:
    """The cache read once; ``symbol`` attn_decode_split or attn_decode_split_i8."""
    kv: KvDType = "i8" if symbol.endswith("i8") else "f16"
    per_position = 2 * model.kv_heads * (model.head_dim + 2 if kv == "i8" else 2 * model.head_dim)

    def prepare(lab: Lab) -> Launch:
        dtype: KvDType = kv if kv == "i8" else lab.dtype
        q, state = lab.values(m, model.heads, model.head_dim), lab.state(context - m)
        splits = -(-context // split_positions(model.kv_heads))
        partials = lab.empty(*partials_shape(m, model.heads, model.head_dim, splits), dtype="f32")
        bench, launcher = lab.bench, KERNELS[symbol].launcher

        def launch(layer: KvLayer) -> None:
            launcher(bench.kernels, bench.stream, q, layer, state, partials, splits=splits)

        return rotating(lab.caches(model.kv_heads, model.head_dim, context, dtype), launch)

    sizes = {"m": m, "context": context, "heads": model.heads, "kv_heads": model.kv_heads}
    operations = 4 * m * context * model.heads * model.head_dim
    yield Benchmark(symbol, model.name, sizes, per_position * context, operations, prepare)


def attention_combine(model: DecoderShape, m: int, context: int) -> Iterator[Benchmark]:
    """The partial results of a context's splits."""
    splits = -(-context // split_positions(model.kv_heads))
    shape = partials_shape(m, model.heads, model.head_dim, splits)

    def prepare(lab: Lab) -> Launch:
        partials, o = lab.values(*shape, dtype="f32"), lab.empty(m, model.heads, model.head_dim)
        bench, launcher = lab.bench, KERNELS["attn_decode_combine"].launcher
        return lambda index: launcher(bench.kernels, bench.stream, partials, o, splits=splits)

    moved = 4 * int(np.prod(shape)) + 2 * m * model.heads * model.head_dim
    yield Benchmark("attn_decode_combine", model.name, {"m": m, "splits": splits}, moved, 0, prepare)


def attention_prefill(model: DecoderShape, m: int, context: int) -> Iterator[Benchmark]:
    """A chunk of m tokens behind ``context`` positions."""

    def prepare(lab: Lab) -> Launch:
        q, o = lab.values(m, model.heads, model.head_dim), lab.empty(m, model.heads, model.head_dim)
        cache = lab.caches(model.kv_heads, model.head_dim, context + m, lab.dtype)[0]
        state, bench, launcher = lab.state(context), lab.bench, KERNELS["attn_prefill"].launcher
        return lambda index: launcher(bench.kernels, bench.stream, q, cache, state, o)

    seen = m * context + m * (m + 1) // 2
    moved = 4 * model.kv_heads * model.head_dim * (context + m) + 4 * m * model.heads * model.head_dim
    operations = 4 * seen * model.heads * model.head_dim
    yield Benchmark("attn_prefill", model.name, {"m": m, "context": context}, moved, operations, prepare)


def kv_quantize(model: DecoderShape, m: int, context: int) -> Iterator[Benchmark]:
    """The rows of m tokens from 16 bits to 8."""

    def prepare(lab: Lab) -> Launch:
        staged = lab.caches(model.kv_heads, model.head_dim, m, lab.dtype, staged=True)[0]
        cache = lab.caches(model.kv_heads, model.head_dim, context + m, "i8")[0]
        state, bench, launcher = lab.state(context), lab.bench, KERNELS["kv_quantize_i8"].launcher
        return lambda index: launcher(bench.kernels, bench.stream, staged, cache, state, tokens=m)

    moved = 2 * m * model.kv_heads * (3 * model.head_dim + 2)
    yield Benchmark("kv_quantize_i8", model.name, {"m": m, "kv_heads": model.kv_heads}, moved, 0, prepare)


def sample_greedy(model: DecoderShape) -> Iterator[Benchmark]:
    """From the head's partial results."""
    tiles = -(-model.vocab // 16)

    def prepare(lab: Lab) -> Launch:
        host = np.zeros((tiles, 1), [("max", "<f4"), ("index", "<i4"), ("sum", "<f4"), ("reserved", "<i4")])
        host["max"][:, 0], host["index"][:, 0], host["sum"] = np.sin(np.arange(tiles)), 16 * np.arange(tiles), 1.0
        shape = (tiles, 1, HEAD_PARTIAL.itemsize)
        partials = lab.bench.upload(host.view(np.uint8).reshape(shape), "u8")
        state, ring = lab.state(0), lab.empty(RING, RING_ENTRY.itemsize, dtype="u8")
        bench, launcher = lab.bench, KERNELS["sample_greedy"].launcher
        return lambda index: launcher(bench.kernels, bench.stream, partials, state, ring, advance=0)

    yield Benchmark("sample_greedy", model.name, {"vocab": model.vocab}, 16 * tiles, 0, prepare)


def sample_filtered(model: DecoderShape) -> Iterator[Benchmark]:
    """Temperature 0.7, top-k 40, top-p 0.9."""

    def prepare(lab: Lab) -> Launch:
        logits = lab.values(model.vocab, dtype="f32")
        seen = lab.bench.upload(np.zeros(-(-model.vocab // 32)), "u32")
        params = np.zeros(1, SAMPLE_PARAMS)
        for name, value in {
            "temperature": 0.7,
            "top_k": 40,
            "top_p": 0.9,
            "repetition_penalty": 1.0,
            "seed": 1,
        }.items():
            params[name] = value
        uploaded = lab.bench.upload(params.view(np.uint8), "u8")
        state, ring = lab.state(0), lab.empty(RING, RING_ENTRY.itemsize, dtype="u8")
        scratch = lab.empty(model.vocab, dtype="u32")
        bench, launcher = lab.bench, KERNELS["sample_filtered"].launcher
        return lambda index: launcher(
            bench.kernels, bench.stream, logits, uploaded, seen, state, ring, scratch, advance=0
        )

    yield Benchmark("sample_filtered", model.name, {"vocab": model.vocab}, 4 * model.vocab, 0, prepare)


def resize(height: int, width: int, side: int, columns: int, rows: int) -> Iterator[Benchmark]:
    """A picture to ``rows`` x ``columns`` tiles, four weights a result as in cubic interpolation without reduction."""
    plan = ResizePlan(
        _axis(height, rows * side),
        _axis(width, columns * side),
        [(row * columns + column, row * side, column * side) for row in range(rows) for column in range(columns)],
    )

    def prepare(lab: Lab) -> Launch:
        image, tables = lab.values(height, width, 3, dtype="u8"), lab.bench.upload(plan.tables(), "i32")
        values, scratch = lab.values(3, 256, dtype="f32"), lab.empty(plan.scratch_bytes, dtype="u8")
        tiles, bench = lab.empty(rows * columns, 3, side, side), lab.bench
        launcher = KERNELS["resize_normalize"].launcher
        return lambda index: launcher(bench.kernels, bench.stream, image, plan, tables, values, scratch, tiles)

    moved = 3 * height * width + 2 * plan.scratch_bytes + 6 * rows * columns * side**2
    sizes = {"height": height, "width": width, "tiles": rows * columns, "side": side}
    yield Benchmark("resize_normalize", "", sizes, moved, 0, prepare)


def _axis(length: int, results: int) -> AxisWeights:
    taps = min(4, length)
    firsts = np.minimum(np.arange(results) * length // results, length - taps)
    return AxisWeights(firsts, np.full(results, taps), np.full((results, taps), ONE // taps), length)
