"""The int8 KV cache: the bits that kv_quantize_i8 writes, and what they stand for."""

from __future__ import annotations

import re
from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from kernels.arrays import Activation, DeviceArray
from kernels.cases import kv as known
from kernels.cases.cache import decode_state, empty_cache, filled_cache, rounded, status_of, stored
from kernels.cases.numbers import uniform
from kernels.errors import ArrayError
from kernels.kernel import Case
from kernels.launch.kv import KERNELS, KvLayer, kv_quantize_i8, slot_bytes
from kernels.loading import Kernels
from kernels.reference.kv import dequantize_i8, quantization_bound, quantize_i8
from kernels.selftest.running import run_case
from kernels.state import STATUS_FULL
from kernels.workbench import Workbench

CASES = list(known.cases())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.entry)
def test_the_cache_has_the_very_bits_and_nothing_else_is_written(kernels: Kernels, case: Case, schedule: int) -> None:
    assert run_case(kernels, case) == 0


def test_every_entry_has_a_case() -> None:
    assert {entry for kernel in KERNELS for entry in kernel.entries} == {case.entry for case in CASES}


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_tokens_together_give_the_bits_of_single_ones(bench: Workbench, dtype: Activation, head_dim: int) -> None:
    keys, values = uniform(1, (2, 7, head_dim), -3.0, 3.0), uniform(2, (2, 7, head_dim), -300.0, 300.0)
    together = empty_cache(bench, 2, head_dim, 20, "i8")
    staged = filled_cache(bench, keys, values, 7, dtype, staged=True)
    kv_quantize_i8(bench.kernels, bench.stream, staged.layer, together.layer, decode_state(bench, 5), tokens=7)
    alone = empty_cache(bench, 2, head_dim, 20, "i8")
    for m in range(7):
        step = filled_cache(bench, keys[:, m : m + 1], values[:, m : m + 1], 1, dtype, staged=True)
        kv_quantize_i8(bench.kernels, bench.stream, step.layer, alone.layer, decode_state(bench, 5 + m), tokens=1)
    for side in ("keys", "values"):
        one, other = bench.download(together.slots[side][0]), bench.download(alone.slots[side][0])
        np.testing.assert_array_equal(one, other)


def test_a_prompt_of_many_tokens_is_moved_whole(bench: Workbench) -> None:
    keys, values = uniform(1, (3, 70, 64), -3.0, 3.0), uniform(2, (3, 70, 64), -3.0, 3.0)
    staged, cache = filled_cache(bench, keys, values, 70, "f16", staged=True), empty_cache(bench, 3, 64, 80, "i8")
    state = decode_state(bench, 10)
    kv_quantize_i8(bench.kernels, bench.stream, staged.layer, cache.layer, state, tokens=70)
    for side, rows in (("keys", keys), ("values", values)):
        data, scales = cache.read(bench, "keys" if side == "keys" else "values")
        np.testing.assert_array_equal(dequantize_i8(data[:, 10:], scales[:, 10:]), stored(rounded(rows, "f16"), "i8"))
    assert status_of(bench, state) == 0


def test_beyond_the_capacity_nothing_is_written_and_it_says_so(bench: Workbench) -> None:
    rows = uniform(1, (1, 4, 64), -1.0, 1.0)
    staged, cache = filled_cache(bench, rows, rows, 4, "f16", staged=True), empty_cache(bench, 1, 64, 10, "i8")
    state = decode_state(bench, 8)
    kv_quantize_i8(bench.kernels, bench.stream, staged.layer, cache.layer, state, tokens=4)
    data, scales = cache.read(bench, "keys")
    np.testing.assert_array_equal(data[0, 8:], quantize_i8(rounded(rows, "f16")[0, :2])[0])
    assert np.isnan(scales[0, :8].astype(np.float32)).all()
    assert status_of(bench, state) == STATUS_FULL


@given(
    arrays(np.float16, (3, 16), elements=st.floats(-65504, 65504, width=16)),
    st.sampled_from([1.0, 2.0**-10, 2.0**-20, 0.0]),
)
def test_int8_is_within_the_bound_of_the_value(rows: Any, scale: float) -> None:
    values = (rows.astype(np.float64) * scale).astype(np.float16)
    data, scales = quantize_i8(values)
    assert (np.abs(dequantize_i8(data, scales) - values) <= quantization_bound(scales)).all()


@given(arrays(np.float16, 8, elements=st.floats(-1000, 1000, width=16)))
def test_reference_rounds_to_the_nearest_ties_to_even(row: Any) -> None:
    """Against exact fractions, where the quotient in f32 is not itself a rounded tie."""
    data, scale = quantize_i8(row)
    if scale > 0:
        for value, integer in zip(row, data, strict=True):
            exact = Fraction(float(value)) / Fraction(float(scale))
            if abs(exact * 2 - round(exact * 2)) > Fraction(1, 10**4) or exact.denominator <= 2:
                assert integer == max(-127, min(127, round(exact)))


def test_rows_that_int8_cannot_hold_are_visible() -> None:
    for bad in (np.nan, np.inf, -np.inf, 1e30):
        row = np.full(64, 1.0, np.float32)
        row[5] = bad
        data, scale = quantize_i8(row)
        assert np.isnan(scale)
        assert not data.any()
    data, scale = quantize_i8(np.zeros(64, np.float32))
    assert scale == 0
    assert not data.any()


def test_bytes_of_a_slot() -> None:
    assert slot_bytes(4, 128, 1000, "f16") == slot_bytes(4, 128, 1000, "bf16") == 4 * 128 * 1000 * 2
    assert slot_bytes(4, 128, 1000, "i8") == 4 * 1000 * (128 + 2)


REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("staged is i8, expected f16 or bf16", {"staged_dtype": "i8"}),
    ("kv is f16, expected i8", {"dtype": "f16"}),
    ("staged is a cache of its own", {"staged": False}),
    ("staged has 2 heads of 64, the cache 2 of 128", {"head_dim": 128}),
    ("9 tokens, expected 1 to 8", {"tokens": 9}),
    ("0 tokens, expected 1 to 8", {"tokens": 0}),
    ("kv has 0 heads of 100 rows", {"kv_heads": 0}),
    ("kv.keys is u32, expected u64", {"table": "u32"}),
]


@pytest.mark.parametrize(("message", "change"), REFUSED, ids=[message for message, _ in REFUSED])
def test_refused_before_anything_is_launched(kernels: Kernels, message: str, change: dict[str, Any]) -> None:
    table, tables = DeviceArray(4096, (1,), "u64"), DeviceArray(4096, (3,), change.get("table", "u64"))
    staged = KvLayer(table, table, 2, 64, 8, change.get("staged_dtype", "f16"), change.get("staged", True))
    layer = KvLayer(
        tables, tables, change.get("kv_heads", 2), change.get("head_dim", 64), 100, change.get("dtype", "i8")
    )
    with pytest.raises(ArrayError, match=re.escape(message)):
        kv_quantize_i8(
            kernels,
            kernels.device.create_stream(),
            staged,
            layer,
            DeviceArray(4096, (64,), "u8"),
            tokens=change.get("tokens", 1),
        )
    assert not kernels.launched


def test_tables_of_different_length_are_refused() -> None:
    tables = [DeviceArray(4096, (slots,), "u64") for slots in (2, 3)]
    for keys, values in product(tables, tables):
        layer = KvLayer(keys, values, 1, 64, 10, "f16")
        if keys.shape == values.shape:
            layer.check("kv", "f16")
        else:
            with pytest.raises(ArrayError, match="kv.values has the shape"):
                layer.check("kv", "f16")
