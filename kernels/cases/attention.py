"""Known answers of attention: in splits, combined, and prefill."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kernels.arrays import Activation
from kernels.cases.cache import decode_state, filled_cache, rounded, status_of, stored
from kernels.cases.numbers import uniform
from kernels.kernel import F64, Case
from kernels.launch.attention import (
    attn_decode_combine,
    attn_decode_split,
    attn_decode_split_i8,
    attn_prefill,
    partials_shape,
)
from kernels.launch.kv import KvDType
from kernels.reference import attention as reference
from kernels.state import STATUS_FULL
from kernels.workbench import Workbench

SLOT, SLOTS = 1, 2


@dataclass(frozen=True)
class Shape:
    """One launch. ``scale``: of queries and keys; scores are up to about scale² · sqrt(D).

    spare: rows of the cache behind the last position; negative: that many positions do not fit. missing: splits that
    are launched too few; -1 is one more than needed.
    """

    tokens: int
    heads: int
    kv_heads: int
    head_dim: int
    pos: int
    dtype: Activation
    cache: KvDType
    scale: float = 1.0
    spare: int = 7
    missing: int = -1

    @property
    def capacity(self) -> int:
        """Rows of the cache."""
        return self.pos + self.tokens + self.spare

    @property
    def splits(self) -> int:
        """Splits that are launched."""
        return -(-(self.pos + self.tokens) // reference.TILE) - self.missing

    @property
    def status(self) -> int:
        """What the state says afterwards."""
        return STATUS_FULL if self.spare < 0 or self.missing > 0 else 0

    @property
    def name(self) -> str:
        """Sizes, as the selftest shows them."""
        heads = f"{self.heads}/{self.kv_heads} heads of {self.head_dim}"
        limits = f"{f', {-self.spare} beyond the cache' * (self.spare < 0)}{', too few splits' * (self.missing > 0)}"
        return f"{self.tokens} tokens at {self.pos}, {heads}, cache {self.cache}, scale {self.scale:g}{limits}"


DECODE = (
    Shape(8, 7, 1, 64, 60, "f16", "f16", scale=3.0),
    Shape(1, 4, 4, 64, 0, "f16", "f16", spare=0),
    Shape(1, 2, 2, 64, 200, "f16", "f16", scale=20.0),
    Shape(3, 2, 2, 64, 68, "f16", "f16", spare=-2),
    Shape(2, 3, 1, 64, 63, "f16", "f16", missing=1),
    Shape(5, 8, 2, 64, 130, "bf16", "bf16", spare=0),
    Shape(1, 6, 1, 64, 63, "bf16", "bf16"),
    Shape(8, 7, 1, 128, 60, "f16", "f16", scale=3.0),
    Shape(5, 16, 2, 128, 130, "bf16", "bf16"),
    Shape(8, 5, 1, 64, 125, "f16", "i8", scale=3.0),
    Shape(1, 8, 2, 64, 64, "f16", "i8"),
    Shape(3, 2, 2, 64, 68, "f16", "i8", spare=-2),
    Shape(3, 12, 2, 64, 70, "bf16", "i8", spare=0),
    Shape(8, 5, 1, 128, 125, "f16", "i8", scale=3.0),
    Shape(1, 7, 1, 128, 190, "bf16", "i8"),
)
PREFILL = (
    Shape(70, 2, 1, 64, 0, "f16", "f16", scale=3.0),
    Shape(33, 4, 2, 64, 40, "f16", "f16", spare=-3),
    Shape(64, 1, 1, 64, 70, "bf16", "i8", spare=0),
    Shape(9, 7, 1, 64, 125, "bf16", "i8", spare=-1),
    Shape(65, 2, 1, 64, 10, "f16", "i8"),
    Shape(33, 4, 2, 64, 40, "bf16", "bf16", spare=0),
    Shape(9, 7, 1, 128, 61, "f16", "f16", scale=3.0),
    Shape(11, 6, 1, 128, 0, "bf16", "bf16"),
    Shape(12, 7, 1, 128, 120, "f16", "i8"),
    Shape(10, 8, 2, 128, 64, "bf16", "i8", scale=3.0),
)


def cases() -> Iterator[Case]:
    """Contexts below, at and above a tile; every ratio of heads that models have; flat and sharp distributions."""
    for seed, shape in enumerate(DECODE):
        yield split_case(shape, seed)
    for seed, (head_dim, dtype) in enumerate(((64, "f16"), (128, "f16"), (64, "bf16"), (128, "bf16"))):
        yield combine_case(head_dim, "f16" if dtype == "f16" else "bf16", seed)
    for seed, shape in enumerate(PREFILL):
        yield prefill_case(shape, seed)


@dataclass(frozen=True)
class Inputs:
    """Queries [M, HQ, D]; keys and values [HKV, T, D] that are written, and those that count, as the cache has them."""

    q: F64
    written: tuple[F64, F64]
    keys: F64
    values: F64


def inputs(shape: Shape, seed: int, limit: int) -> Inputs:
    """Numbers around 0, so that sums cancel. ``limit``: positions that the launch can reach."""
    rows = (shape.kv_heads, min(shape.pos + shape.tokens, shape.capacity), shape.head_dim)
    q = uniform(3 * seed, (shape.tokens, shape.heads, shape.head_dim), -shape.scale, shape.scale)
    keys = rounded(uniform(3 * seed + 1, rows, -shape.scale, shape.scale), shape.dtype)
    values = rounded(uniform(3 * seed + 2, rows, -2.0, 2.0), shape.dtype)
    counted = (stored(side, shape.cache)[:, :limit] for side in (keys, values))
    return Inputs(rounded(q, shape.dtype), (keys, values), *counted)


def split_case(shape: Shape, seed: int) -> Case:
    """Mean of the values and weight of each split, from a slot that is not the first."""
    given = inputs(shape, seed, shape.splits * reference.TILE)
    arguments = (given.q, given.keys, given.values, shape.pos, shape.splits)
    mean, weight = reference.means(reference.split_partials(*arguments))
    bound = reference.split_bounds(*arguments, shape.dtype, quantized=shape.cache == "i8")
    symbol = "attn_decode_split_i8" if shape.cache == "i8" else "attn_decode_split"
    launcher = attn_decode_split_i8 if shape.cache == "i8" else attn_decode_split

    def run(bench: Workbench) -> Mapping[str, npt.NDArray[Any]]:
        layer = filled_cache(bench, *given.written, shape.capacity, shape.cache, slot=SLOT, slots=SLOTS).layer
        state, q = decode_state(bench, shape.pos, slot=SLOT), bench.upload(given.q, shape.dtype)
        partials = bench.empty(partials_shape(shape.tokens, shape.heads, shape.head_dim, shape.splits), "f32")
        launcher(bench.kernels, bench.stream, q, layer, state, partials, splits=shape.splits)
        got_mean, got_weight = reference.means(bench.download(partials))
        return {"mean": got_mean, "log2_weight": got_weight, "status": np.array([status_of(bench, state)])}

    return Case(
        symbol,
        f"{symbol}_d{shape.head_dim}_{shape.dtype}",
        shape.name,
        run,
        {"mean": mean, "log2_weight": weight, "status": np.array([shape.status])},
        {"mean": bound[0], "log2_weight": bound[1]},
    )


def combine_case(head_dim: int, dtype: Activation, seed: int) -> Case:
    """19 splits, of which some are not seen (their values are NaN) and some weigh nothing beside others."""
    tokens, heads, splits = 2, 3, 19
    partials = uniform(seed, partials_shape(tokens, heads, head_dim, splits), -3.0, 3.0).astype(np.float32)
    partials[..., head_dim] *= 10.0
    partials[0, 1, :, head_dim] *= 30.0
    partials[..., head_dim + 1] = 1.0 + np.abs(partials[..., head_dim + 1])
    partials[:, 2, 11:, :head_dim] = np.nan
    partials[:, 2, 11:, head_dim] = -np.inf
    partials[:, 2, 11:, head_dim + 1] = 0.0
    partials[..., head_dim + 2 :] = np.nan

    def run(bench: Workbench) -> Mapping[str, npt.NDArray[Any]]:
        o = bench.empty((tokens, heads, head_dim), dtype)
        attn_decode_combine(bench.kernels, bench.stream, bench.upload(partials, "f32"), o, splits=splits)
        return {"o": bench.download(o)}

    return Case(
        "attn_decode_combine",
        f"attn_decode_combine_d{head_dim}_{dtype}",
        f"{splits} splits",
        run,
        {"o": reference.combine(partials)},
        {"o": reference.combine_bounds(partials, dtype)},
    )


def prefill_case(shape: Shape, seed: int) -> Case:
    """A chunk behind a context."""
    given = inputs(shape, 100 + seed, shape.capacity)
    arguments = (given.q, given.keys, given.values, shape.pos)

    def run(bench: Workbench) -> Mapping[str, npt.NDArray[Any]]:
        layer = filled_cache(bench, *given.written, shape.capacity, shape.cache, slot=SLOT, slots=SLOTS).layer
        state, o = decode_state(bench, shape.pos, slot=SLOT), bench.empty(given.q.shape, shape.dtype)
        attn_prefill(bench.kernels, bench.stream, bench.upload(given.q, shape.dtype), layer, state, o)
        return {"o": bench.download(o), "status": np.array([status_of(bench, state)])}

    return Case(
        "attn_prefill",
        f"attn_prefill_{'i8_' if shape.cache == 'i8' else ''}d{shape.head_dim}_{shape.dtype}",
        shape.name,
        run,
        {"o": reference.attention(*arguments), "status": np.array([shape.status])},
        {"o": reference.bounds(*arguments, shape.dtype, quantized=shape.cache == "i8")},
    )
