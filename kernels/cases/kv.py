"""Known answers of kv_quantize_i8: the very bits, and that nothing else is written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from kernels.arrays import Activation
from kernels.cases.cache import decode_state, empty_cache, filled_cache, rounded, status_of
from kernels.cases.numbers import uniform
from kernels.kernel import F64, Case
from kernels.launch.kv import kv_quantize_i8
from kernels.reference.kv import quantize_i8
from kernels.state import STATUS_FULL
from kernels.workbench import Workbench

CAPACITY, SLOT, SLOTS, KV_HEADS = 12, 2, 3, 3


def cases() -> Iterator[Case]:
    """Ordinary rows, rows of zeros, ties, tiny values and NaN; at the capacity and beyond it."""
    yield make(64, "f16", 5, 9, 1)
    yield make(64, "f16", 1, 0, 2)
    yield make(64, "bf16", 8, 4, 3)
    yield make(128, "f16", 7, 5, 4)
    yield make(128, "bf16", 2, 11, 5)


def rows_of(head_dim: int, dtype: Activation, tokens: int, seed: int) -> F64:
    """f64 [KV_HEADS, tokens, head_dim], each head's first row special: zeros, a tie at every half step, NaN."""
    rows = uniform(seed, (KV_HEADS, tokens, head_dim), -4.0, 4.0)
    rows *= 10.0 ** uniform(seed + 1, (KV_HEADS, tokens, 1), -6.0, 3.0)
    rows[0, 0] = 0.0
    rows[1, 0] = (np.arange(head_dim) - head_dim // 2 + 0.5) * 0.5
    rows[1, 0, 0] = 63.5  # scale 0.5
    rows[2, 0, head_dim - 1] = np.nan
    return rounded(rows, dtype)


def expected(rows: F64, pos: int, capacity: int) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float16]]:
    """Data and scales of a whole slot of 0xFF bytes after the rows were moved in at ``pos``."""
    kv_heads, tokens, head_dim = rows.shape
    data = np.full((kv_heads, capacity, head_dim), -1, np.int8)
    scales = np.full((kv_heads, capacity), np.nan, np.float16)
    fit = min(tokens, capacity - pos)
    data[:, pos : pos + fit], scales[:, pos : pos + fit] = quantize_i8(rows[:, :fit])
    return data, scales


def make(head_dim: int, dtype: Activation, tokens: int, pos: int, seed: int) -> Case:
    """Move ``tokens`` rows to ``pos`` of a cache of 12 rows."""
    keys, values = rows_of(head_dim, dtype, tokens, seed), rows_of(head_dim, dtype, tokens, seed + 10)

    def run(bench: Workbench) -> Mapping[str, npt.NDArray[Any]]:
        staged = filled_cache(bench, keys, values, tokens, dtype, staged=True)
        cache = empty_cache(bench, KV_HEADS, head_dim, CAPACITY, "i8", slots=SLOTS)
        state = decode_state(bench, pos, slot=SLOT)
        kv_quantize_i8(bench.kernels, bench.stream, staged.layer, cache.layer, state, tokens=tokens)
        key_data, key_scales = cache.read(bench, "keys", SLOT)
        value_data, value_scales = cache.read(bench, "values", SLOT)
        status = np.array([status_of(bench, state)])
        return {"keys": key_data, "key_scales": key_scales, "values": value_data, "value_scales": value_scales} | {
            "status": status
        }

    key_data, key_scales = expected(keys, pos, CAPACITY)
    value_data, value_scales = expected(values, pos, CAPACITY)
    return Case(
        "kv_quantize_i8",
        f"kv_quantize_i8_d{head_dim}_{dtype}",
        f"{tokens} tokens at {pos} of {CAPACITY}",
        run,
        {
            "keys": key_data,
            "key_scales": key_scales,
            "values": value_data,
            "value_scales": value_scales,
            "status": np.array([STATUS_FULL if pos + tokens > CAPACITY else 0]),
        },
    )
