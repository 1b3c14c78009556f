"""Which rows there are for each symbol of the registry."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain

from scripts.bench import product_rows as products
from scripts.bench import step_rows as steps
from scripts.bench.kernel_data import Benchmark
from scripts.bench.shapes import TINY, DecoderShape


@dataclass(frozen=True)
class Sizes:
    """Tokens of a decode step, tokens of a prefill chunk, positions in the cache, pictures as arguments of resize."""

    step_tokens: tuple[int, ...] = (1, 2, 4, 8)
    chunk_tokens: tuple[int, ...] = (16, 32, 64, 128, 256, 512, 1024, 2048)
    contexts: tuple[int, ...] = (1024,)
    pictures: tuple[tuple[int, int, int, int, int], ...] = ((1080, 1920, 448, 1, 1), (1080, 1920, 448, 4, 3))


QUICK_SIZES = Sizes((1, 3), (9,), (40,), ((9, 13, 8, 2, 1),))
Rows = Callable[[DecoderShape, Sizes], Iterator[Benchmark]]


def _steps(rows: Callable[[DecoderShape, int], Iterator[Benchmark]]) -> Rows:
    return lambda model, sizes: chain.from_iterable(rows(model, m) for m in sizes.step_tokens)


def _chunks(rows: Callable[[DecoderShape, int], Iterator[Benchmark]]) -> Rows:
    return lambda model, sizes: chain.from_iterable(rows(model, m) for m in sizes.chunk_tokens)


def _over_contexts(rows: Callable[[DecoderShape, int, int], Iterator[Benchmark]], *, chunks: bool = False) -> Rows:
    def made(model: DecoderShape, sizes: Sizes) -> Iterator[Benchmark]:
        for m in sizes.chunk_tokens if chunks else sizes.step_tokens:
            for context in sizes.contexts:
                yield from rows(model, m, context)

    return made


ROWS: Mapping[str, Rows] = {
    "gemv": _steps(products.gemv),
    "gemv_residual": _steps(products.gemv_residual),
    "gemv_swiglu": _steps(lambda model, m: products.swiglu("gemv_swiglu", model, m)),
    "gemv_qkv_rope_kv": _over_contexts(lambda model, m, c: products.qkv_rope_kv("gemv_qkv_rope_kv", model, m, c)),
    "head_argmax": _steps(products.head_argmax),
    "head_logits": _steps(products.head_logits),
    "gemm_64": _chunks(lambda model, m: products.gemm("gemm_64", model, m)),
    "gemm_128": _chunks(lambda model, m: products.gemm("gemm_128", model, m)),
    "gemm_swiglu": _chunks(lambda model, m: products.swiglu("gemm_swiglu", model, m)),
    "gemm_qkv_rope_kv": _over_contexts(
        lambda model, m, c: products.qkv_rope_kv("gemm_qkv_rope_kv", model, m, c), chunks=True
    ),
    "dequantize": lambda model, sizes: products.dequantize(model),
    "rmsnorm_residual": _steps(steps.rmsnorm),
    "embed_f16": _steps(lambda model, m: steps.embed("embed_f16", model, m)),
    "embed_i8": _steps(lambda model, m: steps.embed("embed_i8", model, m)),
    "fuse_image_text": _chunks(steps.fuse),
    "attn_decode_split": _over_contexts(lambda model, m, c: steps.attention_split("attn_decode_split", model, m, c)),
    "attn_decode_split_i8": _over_contexts(
        lambda model, m, c: steps.attention_split("attn_decode_split_i8", model, m, c)
    ),
    "attn_decode_combine": _over_contexts(steps.attention_combine),
    "attn_prefill": _over_contexts(steps.attention_prefill, chunks=True),
    "kv_quantize_i8": _over_contexts(steps.kv_quantize),
    "sample_greedy": lambda model, sizes: steps.sample_greedy(model),
    "sample_filtered": lambda model, sizes: steps.sample_filtered(model),
}
# Of no model, but of a picture.
PICTURE_ROWS: Mapping[str, Callable[[Sizes], Iterator[Benchmark]]] = {
    "resize_normalize": lambda sizes: chain.from_iterable(steps.resize(*picture) for picture in sizes.pictures)
}


def benchmarks(models: tuple[DecoderShape, ...], sizes: Sizes, symbols: tuple[str, ...] = ()) -> Iterator[Benchmark]:
    """All rows, or those of ``symbols``, model by model."""
    for model in models:
        for symbol, rows in ROWS.items():
            if not symbols or symbol in symbols:
                yield from rows(model, sizes)
    for symbol, pictures in PICTURE_ROWS.items():
        if not symbols or symbol in symbols:
            yield from pictures(sizes)


def quick(symbols: tuple[str, ...] = ()) -> Iterator[Benchmark]:
    """Every symbol on sizes that the emulator runs in seconds."""
    return benchmarks((TINY,), QUICK_SIZES, symbols)
