"""Benchmark rows of everything with an int4 weight: GEMV, GEMM, LM head, dequantisation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kernels.arrays import DeviceArray
from kernels.launch.weights import T16Weight
from kernels.registry import KERNELS
from kernels.state import HEAD_PARTIAL
from scripts.bench.device_timing import Launch
from scripts.bench.kernel_data import Benchmark, Lab, rotating
from scripts.bench.shapes import DecoderShape

PLAIN = ("qkv", "o", "gate_up", "down")
RESIDUAL = ("o", "down")


def _benchmark(symbol: str, model: DecoderShape, name: str, m: int, prepare: Any, out_bytes: int) -> Benchmark:
    """``out_bytes``: per row and token of the product's results."""
    n, k = model.linears()[name]
    moved = model.weight_bytes(n, k) + 2 * m * k + out_bytes * m * n
    return Benchmark(symbol, model.name, {"n": n, "k": k, "m": m}, moved, 2 * m * n * k, prepare)


def _launches(lab: Lab, model: DecoderShape, symbol: str, name: str, m: int, out: Any) -> Launch:
    """Launch with x and each of the copies of the weight, into what ``out(lab)`` makes."""
    n, k = model.linears()[name]
    kernels, stream, launcher = lab.bench.kernels, lab.bench.stream, KERNELS[symbol].launcher
    x, target = lab.values(m, k), out(lab)

    weights = lab.weights(model.vocab if name == "head" else n, k, model.group_size)
    return rotating(weights, lambda weight: launcher(kernels, stream, x, weight, target))


def _products(symbol: str, model: DecoderShape, m: int, names: tuple[str, ...], kind: str) -> Iterator[Benchmark]:
    """y T [M, N], residual f32 [M, N], halves T [M, N/2], or logits f32 [M, V]."""
    for name in names:
        n = model.vocab if name == "head" else model.linears()[name][0]
        shape = {"y": (m, n), "residual": (m, n), "halves": (m, n // 2), "logits": (m, n)}[kind]
        dtype = "f32" if kind in ("residual", "logits") else None

        def prepare(lab: Lab, name: str = name, shape: tuple[int, int] = shape, dtype: Any = dtype) -> Launch:
            def out(made: Lab) -> DeviceArray:
                return made.values(*shape, dtype=dtype) if kind == "residual" else made.empty(*shape, dtype=dtype)

            return _launches(lab, model, symbol, name, m, out)

        yield _benchmark(symbol, model, name, m, prepare, {"y": 2, "residual": 8, "halves": 1, "logits": 4}[kind])


def gemv(model: DecoderShape, m: int) -> Iterator[Benchmark]:
    """Every product of a layer."""
    yield from _products("gemv", model, m, PLAIN, "y")


def gemv_residual(model: DecoderShape, m: int) -> Iterator[Benchmark]:
    """The products that end in the residual stream."""
    yield from _products("gemv_residual", model, m, RESIDUAL, "residual")


def swiglu(symbol: str, model: DecoderShape, m: int) -> Iterator[Benchmark]:
    """Gate and up at once; ``symbol`` gemv_swiglu or gemm_swiglu."""
    yield from _products(symbol, model, m, ("gate_up",), "halves")


def gemm(symbol: str, model: DecoderShape, m: int) -> Iterator[Benchmark]:
    """Every product of a layer with gemm_64 or gemm_128."""
    yield from _products(symbol, model, m, PLAIN, "y")


def head_logits(model: DecoderShape, m: int) -> Iterator[Benchmark]:
    """The LM head, all logits."""
    yield from _products("head_logits", model, m, ("head",), "logits")


def head_argmax(model: DecoderShape, m: int) -> Iterator[Benchmark]:
    """The LM head for a greedy sampler."""

    def prepare(lab: Lab) -> Launch:
        n, k = model.linears()["head"]
        partials = lab.empty(n // 16, m, HEAD_PARTIAL.itemsize, dtype="u8")
        x, kernels, stream = lab.values(m, k), lab.bench.kernels, lab.bench.stream
        launcher = KERNELS["head_argmax"].launcher
        weights = lab.weights(model.vocab, k, model.group_size)
        return rotating(weights, lambda weight: launcher(kernels, stream, x, weight, partials))

    yield _benchmark("head_argmax", model, "head", m, prepare, 1)


def qkv_rope_kv(symbol: str, model: DecoderShape, m: int, context: int) -> Iterator[Benchmark]:
    """Queries, keys and values with bias, rotation and the write to the cache, at the end of ``context`` positions."""

    def prepare(lab: Lab) -> Launch:
        n, k = model.linears()["qkv"]
        capacity = context + m
        bias = lab.values(n, dtype="f32")
        rope = lab.values(capacity, model.head_dim // 2, 2, dtype="f32")
        x, q = lab.values(m, k), lab.empty(m, model.heads, model.head_dim)
        cache = lab.caches(model.kv_heads, model.head_dim, capacity, lab.dtype)[0]
        state, kernels, stream = lab.state(context), lab.bench.kernels, lab.bench.stream
        launcher = KERNELS[symbol].launcher

        def launch(weight: T16Weight) -> None:
            launcher(kernels, stream, x, weight, bias, rope, state, q, cache, heads=model.heads)

        return rotating(lab.weights(n, k, model.group_size), launch)

    yield _benchmark(symbol, model, "qkv", m, prepare, 2)


def dequantize(model: DecoderShape) -> Iterator[Benchmark]:
    """Every product's weight to 16 bits."""
    for name in PLAIN:
        n, k = model.linears()[name]

        def prepare(lab: Lab, n: int = n, k: int = k) -> Launch:
            target, kernels, stream = lab.empty(n, k), lab.bench.kernels, lab.bench.stream
            launcher = KERNELS["dequantize"].launcher
            return rotating(
                lab.weights(n, k, model.group_size), lambda weight: launcher(kernels, stream, weight, target)
            )

        yield Benchmark("dequantize", model.name, {"n": n, "k": k}, model.weight_bytes(n, k) + 2 * n * k, 0, prepare)
