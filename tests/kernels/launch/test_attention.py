"""Decode and prefill attention on the emulator, against float64 numpy and against itself."""

from __future__ import annotations

import re
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from kernels.arrays import Activation, DeviceArray
from kernels.cases import attention as known
from kernels.cases.cache import Cache, decode_state, filled_cache, rounded, status_of, stored
from kernels.cases.numbers import uniform
from kernels.errors import ArrayError
from kernels.kernel import F64, Case
from kernels.launch import attention as launch
from kernels.launch.kv import KvDType, KvLayer
from kernels.loading import Kernels
from kernels.reference import attention as reference
from kernels.registry import KERNELS
from kernels.selftest.running import run_case
from kernels.state import STATUS_FULL
from kernels.workbench import Workbench

CASES = list(known.cases())
CACHES: tuple[tuple[Activation, KvDType], ...] = (("f16", "f16"), ("bf16", "bf16"), ("f16", "i8"), ("bf16", "i8"))
Host = npt.NDArray[Any]


def numbers(seed: int, *shape: int, scale: float = 1.0) -> F64:
    return uniform(seed, shape, -scale, scale)


def decode(
    bench: Workbench, q: F64, cache: Cache, pos: int, dtype: Activation, *, splits: int, status: int = 0
) -> Host:
    """Split and combine the tokens of ``q`` at ``pos`` of slot 0."""
    tokens, heads, head_dim = q.shape
    state = decode_state(bench, pos)
    partials = bench.empty(launch.partials_shape(tokens, heads, head_dim, splits), "f32")
    o = bench.empty(q.shape, dtype)
    launcher = launch.attn_decode_split_i8 if cache.layer.dtype == "i8" else launch.attn_decode_split
    launcher(bench.kernels, bench.stream, bench.upload(q, dtype), cache.layer, state, partials, splits=splits)
    launch.attn_decode_combine(bench.kernels, bench.stream, partials, o, splits=splits)
    assert status_of(bench, state) == status
    return bench.download(o)


def prefill(bench: Workbench, q: F64, cache: Cache, pos: int, dtype: Activation, *, status: int = 0) -> Host:
    state, o = decode_state(bench, pos), bench.empty(q.shape, dtype)
    launch.attn_prefill(bench.kernels, bench.stream, bench.upload(q, dtype), cache.layer, state, o)
    assert status_of(bench, state) == status
    return bench.download(o)


def splits_for(length: int) -> int:
    return -(-length // launch.SPLIT_POSITIONS)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.entry}: {case.name}")
def test_known_answers_within_their_bounds_under_every_schedule(kernels: Kernels, case: Case, schedule: int) -> None:
    assert run_case(kernels, case) <= 1


def test_every_entry_of_the_family_has_a_case() -> None:
    of_family = chain.from_iterable(KERNELS[kernel.symbol].entries for kernel in launch.KERNELS)
    assert set(of_family) == {case.entry for case in CASES}


@pytest.mark.parametrize(("dtype", "cached"), CACHES)
@pytest.mark.parametrize("length", [1, 63, 64, 65, 300])
@pytest.mark.parametrize("ratio", [1, 2, 3, 4, 5, 6, 7, 8])
def test_one_token_over_any_context_and_ratio(
    bench: Workbench, dtype: Activation, cached: KvDType, length: int, ratio: int
) -> None:
    head_dim, kv_heads = 64 if ratio % 2 else 128, 2 if length < 100 else 1
    q = rounded(numbers(ratio, 1, kv_heads * ratio, head_dim, scale=2.0), dtype)
    keys = rounded(numbers(length, kv_heads, length, head_dim, scale=2.0), dtype)
    values = rounded(numbers(length + 1, kv_heads, length, head_dim), dtype)
    cache = filled_cache(bench, keys, values, length + 130, cached)
    got = decode(bench, q, cache, length - 1, dtype, splits=splits_for(length))
    arguments = (q, stored(keys, cached), stored(values, cached), length - 1)
    bound = reference.bounds(*arguments, dtype, quantized=cached == "i8")
    assert (np.abs(got - reference.attention(*arguments)) <= bound).all()


@pytest.mark.parametrize(("dtype", "cached"), CACHES)
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(2, 2, 64), (6, 2, 128), (7, 1, 64), (16, 2, 64)])
@pytest.mark.parametrize("tokens", [2, 3, 8])
def test_several_tokens_give_what_single_steps_give_across_a_split(
    bench: Workbench, dtype: Activation, cached: KvDType, heads: int, kv_heads: int, head_dim: int, tokens: int
) -> None:
    pos = 128 - tokens // 2
    q = numbers(1, tokens, heads, head_dim, scale=3.0)
    keys, values = numbers(2, kv_heads, pos + tokens, head_dim), numbers(3, kv_heads, pos + tokens, head_dim)
    together = decode(bench, q, filled_cache(bench, keys, values, 200, cached), pos, dtype, splits=4)
    for m in range(tokens):
        length = pos + m + 1
        before = filled_cache(bench, keys[:, :length], values[:, :length], 200, cached)
        alone = decode(bench, q[m : m + 1], before, pos + m, dtype, splits=splits_for(length))
        np.testing.assert_array_equal(alone[0], together[m])


def test_the_number_of_splits_launched_does_not_matter(bench: Workbench) -> None:
    q, keys, values = numbers(1, 4, 6, 64), numbers(2, 2, 70, 64), numbers(3, 2, 70, 64)
    cache = filled_cache(bench, keys, values, 1000, "f16")
    least = decode(bench, q, cache, 66, "f16", splits=2)
    for splits in (3, 16):
        np.testing.assert_array_equal(decode(bench, q, cache, 66, "f16", splits=splits), least)


@pytest.mark.parametrize("cached", ["f16", "i8"])
@pytest.mark.parametrize("tail", [np.nan, np.inf, 7.0])
def test_what_lies_behind_the_last_position_does_not_matter(bench: Workbench, cached: KvDType, tail: float) -> None:
    q, keys, values = numbers(1, 3, 4, 64), numbers(2, 1, 90, 64), numbers(3, 1, 90, 64)
    clean = filled_cache(bench, keys[:, :70], values[:, :70], 90, cached)
    keys[:, 70:], values[:, 70:] = tail, tail
    dirty = filled_cache(bench, keys, values, 90, cached)
    np.testing.assert_array_equal(
        decode(bench, q, clean, 67, "f16", splits=2), decode(bench, q, dirty, 67, "f16", splits=2)
    )
    np.testing.assert_array_equal(prefill(bench, q, clean, 67, "f16"), prefill(bench, q, dirty, 67, "f16"))


@pytest.mark.parametrize(("dtype", "cached"), CACHES)
def test_equal_keys_give_the_mean_of_the_values(bench: Workbench, dtype: Activation, cached: KvDType) -> None:
    length = 128
    q, keys = numbers(1, 1, 4, 64), np.repeat(numbers(2, 2, 1, 64), length, axis=1)
    values = np.round(numbers(3, 2, length, 64, scale=8.0)) / 8
    values[..., 0] = 127 / 16  # so that an int8 row has the scale 1/16 and holds them exactly
    mean = np.repeat(values.mean(axis=1), 2, axis=0)
    cache = filled_cache(bench, keys, values, length, cached)
    expected = rounded(mean, dtype)
    np.testing.assert_array_equal(decode(bench, q, cache, length - 1, dtype, splits=2)[0], expected)
    np.testing.assert_array_equal(prefill(bench, q, cache, length - 1, dtype)[0], expected)


@pytest.mark.parametrize(("dtype", "cached"), CACHES)
@pytest.mark.parametrize("sign", [1, -1])
def test_a_dominating_key_gives_its_value_exactly_and_extreme_scores_stay_finite(
    bench: Workbench, dtype: Activation, cached: KvDType, sign: int
) -> None:
    """Scores of up to 224 * 127 * 64 / 8 = 2.3e5, positive or negative: beyond anything that 2^s could hold."""
    length, best = 150, 77
    q = np.full((1, 2, 64), 224.0)
    keys = np.full((1, length, 64), sign * 127.0 if sign < 0 else 64.0)
    keys[:, best] = 127.0 if sign > 0 else -64.0
    values = rounded(numbers(3, 1, length, 64), dtype)
    cache = filled_cache(bench, keys, values, length, cached)
    expected = np.broadcast_to(rounded(stored(values, cached)[:, best], dtype), (2, 64))
    np.testing.assert_array_equal(decode(bench, q, cache, length - 1, dtype, splits=3)[0], expected)
    np.testing.assert_array_equal(prefill(bench, q, cache, length - 1, dtype)[0], expected)


def test_bf16_keeps_values_beyond_the_range_of_f16(bench: Workbench) -> None:
    q, keys = numbers(1, 2, 2, 128), numbers(2, 1, 66, 128)
    values = rounded(numbers(3, 1, 66, 128, scale=1e30), "bf16")
    cache = filled_cache(bench, keys, values, 66, "bf16")
    arguments = (rounded(q, "bf16"), rounded(keys, "bf16"), values, 64)
    bound, expected = reference.bounds(*arguments, "bf16"), reference.attention(*arguments)
    assert (np.abs(decode(bench, q, cache, 64, "bf16", splits=2) - expected) <= bound).all()
    assert (np.abs(prefill(bench, q, cache, 64, "bf16") - expected) <= bound).all()


def test_a_nan_in_the_context_is_seen(bench: Workbench) -> None:
    q, keys, values = numbers(1, 1, 2, 64), numbers(2, 1, 70, 64), numbers(3, 1, 70, 64)
    keys[0, 3, 5] = np.nan
    for cached in ("f16", "i8"):
        cache = filled_cache(bench, keys, values, 80, "f16" if cached == "f16" else "i8")
        assert np.isnan(decode(bench, q, cache, 69, "f16", splits=2)).all()
        assert np.isnan(prefill(bench, q, cache, 69, "f16")).all()


@pytest.mark.parametrize("cached", ["f16", "bf16", "i8"])
def test_the_last_position_of_the_cache_is_used_and_the_next_one_is_full(bench: Workbench, cached: KvDType) -> None:
    dtype: Activation = "bf16" if cached == "bf16" else "f16"
    capacity = 70
    q, keys, values = numbers(1, 3, 2, 64), numbers(2, 1, capacity, 64), numbers(3, 1, capacity, 64)
    cache = filled_cache(bench, keys, values, capacity, cached)
    fits = decode(bench, q, cache, capacity - 3, dtype, splits=2)
    beyond = decode(bench, q, cache, capacity - 2, dtype, splits=2, status=STATUS_FULL)
    again = decode(bench, q[:2], cache, capacity - 2, dtype, splits=2)
    np.testing.assert_array_equal(beyond[:2], again)
    assert np.isfinite(fits).all()
    assert np.isfinite(beyond).all()
    prefilled = prefill(bench, q, cache, capacity - 2, dtype, status=STATUS_FULL)
    np.testing.assert_array_equal(prefilled[:2], prefill(bench, q[:2], cache, capacity - 2, dtype))


def test_a_context_of_more_splits_than_a_warp_has_lanes(bench: Workbench) -> None:
    """With the largest score in the last split: without it in the maximum, 2^(s - max) would overflow."""
    length = 33 * 64 + 5
    q, keys, values = np.full((1, 2, 64), 16.0), numbers(2, 1, length, 64), rounded(numbers(3, 1, length, 64), "f16")
    keys[:, -2] = 16.0
    got = decode(bench, q, filled_cache(bench, keys, values, length, "f16"), length - 1, "f16", splits=34)
    np.testing.assert_array_equal(got[0], np.broadcast_to(values[0, -2], (2, 64)))


def test_too_few_splits_are_reported(bench: Workbench) -> None:
    cache = filled_cache(bench, numbers(2, 1, 65, 64), numbers(3, 1, 65, 64), 128, "f16")
    decode(bench, numbers(1, 1, 1, 64), cache, 63, "f16", splits=1)
    decode(bench, numbers(1, 1, 1, 64), cache, 64, "f16", splits=1, status=STATUS_FULL)


@pytest.mark.parametrize(("dtype", "cached"), CACHES)
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(3, 1, 64), (4, 2, 128)])
def test_a_prompt_in_chunks_gives_what_it_gives_whole(
    bench: Workbench, dtype: Activation, cached: KvDType, heads: int, kv_heads: int, head_dim: int
) -> None:
    length = 101
    q = rounded(numbers(1, length, heads, head_dim, scale=2.0), dtype)
    keys = rounded(numbers(2, kv_heads, length, head_dim), dtype)
    values = rounded(numbers(3, kv_heads, length, head_dim), dtype)
    whole = prefill(bench, q, filled_cache(bench, keys, values, length, cached), 0, dtype)
    arguments = (q, stored(keys, cached), stored(values, cached), 0)
    bound = reference.bounds(*arguments, dtype, quantized=cached == "i8")
    assert (np.abs(whole - reference.attention(*arguments)) <= bound).all()
    for start, stop in ((0, 9), (9, 70), (70, 71), (71, 101)):
        part = filled_cache(bench, keys[:, :stop], values[:, :stop], length, cached)
        np.testing.assert_array_equal(prefill(bench, q[start:stop], part, start, dtype), whole[start:stop])


@pytest.mark.parametrize("side", ["keys", "values"])
def test_an_int8_scale_that_is_off_by_two_ulps_is_noticed(bench: Workbench, side: str) -> None:
    """Value: one position, whose row is then the answer. Key: two with the same score of 28 and opposite values."""
    q, keys, values = np.full((1, 1, 64), 1.2), np.full((1, 2, 64), 2.0), np.full((1, 2, 64), 3.0)
    values[:, 1] = -3.0
    length = 1 if side == "values" else 2
    stored_keys, stored_values = stored(keys, "i8")[:, :length], stored(values, "i8")[:, :length]
    cache = filled_cache(bench, keys[:, :length], values[:, :length], 2, "i8")
    arguments = (rounded(q, "f16"), stored_keys, stored_values, length - 1)
    expected, bound = reference.attention(*arguments), reference.bounds(*arguments, "f16", quantized=True)
    assert (np.abs(decode(bench, q, cache, length - 1, "f16", splits=1) - expected) <= bound).all()
    address = cache.slots["keys" if side == "keys" else "values"][0]
    raw = bench.download(address)
    raw[-4:].view(np.uint16)[length - 1] += 2
    bench.kernels.device.copy_in(address.ptr, raw, bench.stream)
    moved = decode(bench, q, cache, length - 1, "f16", splits=1)
    assert not (np.abs(moved - expected) <= bound).all()


def test_reference_is_softmax_attention_written_out() -> None:
    q, keys, values = numbers(1, 2, 4, 8), numbers(2, 2, 5, 8), numbers(3, 2, 5, 8)
    for m in range(2):
        for h in range(4):
            visible = range(3 + m + 1)
            weights = [np.exp(sum(q[m, h] * keys[h // 2, t]) / 8**0.5) for t in visible]
            want = sum(w * values[h // 2, t] for w, t in zip(weights, visible, strict=True)) / sum(weights)
            np.testing.assert_allclose(reference.attention(q, keys, values, 3)[m, h], want, rtol=1e-12)
            partials = reference.split_partials(q, keys, values, 3, 4, positions=2)
            np.testing.assert_allclose(reference.combine(partials)[m, h], want, rtol=1e-12)


REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("9 tokens in a decode step, expected 1 to 8", {"tokens": 9}),
    ("q is f32, expected f16 or bf16", {"q": "f32"}),
    ("q is bf16 and the cache f16", {"q": "bf16"}),
    ("q has the shape [1, 4, 128], expected [any, any, 64]", {"q_dim": 128}),
    ("5 query heads on 2 KV heads, expected a multiple of them up to 8 times", {"heads": 5}),
    ("18 query heads on 2 KV heads, expected a multiple of them up to 8 times", {"heads": 18}),
    ("0 splits, expected at least 1", {"splits": 0}),
    ("partials has the shape [1, 4, 3, 68], expected [1, 4, 2, 68]", {"partial_splits": 3}),
    ("kv is i8, expected f16 or bf16", {"cache": "i8"}),
    ("kv has heads of 96, expected 64 or 128", {"head_dim": 96}),
    ("kv holds the tokens of one step", {"staged": True}),
    ("state has the shape [32], expected [64]", {"state": 32}),
]


def pointer(shape: tuple[int, ...], dtype: Any) -> DeviceArray:
    return DeviceArray(4096, shape, dtype)


@pytest.mark.parametrize(("message", "given"), REFUSED, ids=[message for message, _ in REFUSED])
def test_refused_before_anything_is_launched(kernels: Kernels, message: str, given: dict[str, Any]) -> None:
    heads, head_dim, splits = given.get("heads", 4), given.get("head_dim", 64), given.get("splits", 2)
    tokens, stream = given.get("tokens", 1), kernels.device.create_stream()
    table, staged = pointer((3,), "u64"), given.get("staged", False)
    layer = KvLayer(table, table, 2, head_dim, 100, given.get("cache", "f16"), staged)
    q = pointer((tokens, heads, given.get("q_dim", head_dim)), given.get("q", "f16"))
    partials = pointer((tokens, heads, given.get("partial_splits", splits), head_dim + 4), "f32")
    state = pointer((given.get("state", 64),), "u8")
    with pytest.raises(ArrayError, match=re.escape(message)):
        launch.attn_decode_split(kernels, stream, q, layer, state, partials, splits=splits)
    assert not kernels.launched


def test_prefill_and_combine_refuse_what_does_not_fit(kernels: Kernels) -> None:
    stream, table = kernels.device.create_stream(), pointer((1,), "u64")
    layer, q = KvLayer(table, table, 2, 64, 100, "f16"), pointer((9, 4, 64), "f16")
    with pytest.raises(ArrayError, match="o is bf16, expected f16"):
        launch.attn_prefill(kernels, stream, q, layer, pointer((64,), "u8"), pointer((9, 4, 64), "bf16"))
    with pytest.raises(ArrayError, match="heads of 80, expected 64 or 128"):
        launch.attn_decode_combine(kernels, stream, pointer((1, 4, 2, 84), "f32"), pointer((1, 4, 80), "f16"), splits=2)
    with pytest.raises(ArrayError, match="0 KV heads"):
        launch.split_positions(0)
    assert not kernels.launched


def test_blocks_fit_the_shared_memory_of_every_device() -> None:
    for head_dim in (64, 128):
        for dtype in ("f16", "bf16", "i8"):
            assert launch.prefill_shared_bytes(head_dim, dtype) <= 96 * 1024
            assert launch.split_shared_bytes(8 * launch.MAX_RATIO, head_dim, dtype) <= 96 * 1024
            assert launch.split_shared_bytes(launch.MAX_RATIO, head_dim, dtype) <= 48 * 1024
