"""gemv_qkv_rope_kv on the emulator: where rows go, one result for every M, and a cache that is full."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

from kernels.arrays import Activation, from_host_dtype
from kernels.cases.cache import Cache, Side, decode_state, empty_cache, status_of
from kernels.cases.products import Product, product
from kernels.cases.qkv import rope_table
from kernels.launch.gemv import gemv, gemv_qkv_rope_kv
from kernels.packing import qkv_order
from kernels.state import STATUS_FULL
from kernels.workbench import Workbench

HEADS, KV_HEADS, CAPACITY = 4, 2, 16
SIDES: tuple[Side, ...] = ("keys", "values")


@dataclass(frozen=True)
class Step:
    """What a launch left: q [M, heads, D], the whole cache as floats, and the status bits."""

    q: np.ndarray
    cache: dict[Side, np.ndarray]
    status: int


def step(
    bench: Workbench,
    of: Product,
    pos: int,
    *,
    head_dim: int,
    into: Cache | None = None,
    slot: int = 0,
    staged: bool = False,
    positions: int = CAPACITY,
) -> Step:
    """One launch without a bias."""
    x, w = of.upload(bench, qkv_order(HEADS, KV_HEADS, head_dim))
    cache = into or empty_cache(bench, KV_HEADS, head_dim, CAPACITY, of.dtype, slots=2, staged=staged)
    state = decode_state(bench, pos, slot=slot)
    q = bench.empty((of.x.shape[0], HEADS, head_dim), of.dtype)
    rope = bench.upload(rope_table(positions, head_dim), "f32")
    gemv_qkv_rope_kv(bench.kernels, bench.stream, x, w, None, rope, state, q, cache.layer, heads=HEADS)
    data = {side: from_host_dtype(cache.read(bench, side, slot if not staged else 0)[0], of.dtype) for side in SIDES}
    return Step(bench.download(q), data, status_of(bench, state))


def make(tokens: int, head_dim: int, dtype: Activation = "f16", group: int = 64) -> Product:
    return product(40, tokens, (HEADS + 2 * KV_HEADS) * head_dim, 128, group, dtype)


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_heads_are_turned_as_complex_numbers_and_stand_in_natural_order(
    bench: Workbench, head_dim: int, dtype: Activation
) -> None:
    of, pos = make(3, head_dim, dtype), 5
    product_ = (of.x @ of.dequantized().T).reshape(3, HEADS + 2 * KV_HEADS, head_dim)
    half = head_dim // 2
    pairs = product_[..., :half] + 1j * product_[..., half:]
    angles = np.arange(pos, pos + 3)[:, None] * 10000.0 ** (-2.0 * np.arange(half) / head_dim)
    turned = pairs * np.exp(1j * angles)[:, None, :]
    expected = np.concatenate([turned.real, turned.imag], axis=2)
    left = step(bench, of, pos, head_dim=head_dim, slot=1)
    close = {"rtol": 2.0**-10 if dtype == "f16" else 2.0**-7, "atol": 2.0**-12}
    np.testing.assert_allclose(left.q, expected[:, :HEADS], **close)
    keys, values = (left.cache[side][:, pos : pos + 3].transpose(1, 0, 2) for side in SIDES)
    np.testing.assert_allclose(keys, expected[:, HEADS : HEADS + KV_HEADS], **close)
    np.testing.assert_allclose(values, product_[:, HEADS + KV_HEADS :], **close)
    for side in SIDES:
        rest = np.delete(left.cache[side], range(pos, pos + 3), axis=1)
        assert np.isnan(rest).all()
    assert left.status == 0


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
@pytest.mark.parametrize("group", [32, 64, 128])
def test_eight_tokens_leave_what_eight_steps_leave(bench: Workbench, group: int, dtype: Activation) -> None:
    of = make(8, 64, dtype, group)
    together = step(bench, of, 3, head_dim=64)
    cache = empty_cache(bench, KV_HEADS, 64, CAPACITY, dtype, slots=2)
    singles = [step(bench, replace(of, x=of.x[m : m + 1]), 3 + m, head_dim=64, into=cache) for m in range(8)]
    assert np.array_equal(np.concatenate([single.q for single in singles]), together.q)
    for side in SIDES:
        assert np.array_equal(singles[-1].cache[side], together.cache[side], equal_nan=True)


def test_staged_tokens_lie_from_row_0_and_are_turned_to_their_positions(bench: Workbench) -> None:
    of = make(2, 64)
    direct = step(bench, of, 9, head_dim=64)
    staged = step(bench, of, 9, head_dim=64, slot=1, staged=True)
    assert np.array_equal(staged.q, direct.q)
    for side in SIDES:
        assert np.array_equal(staged.cache[side][:, :2], direct.cache[side][:, 9:11])
        assert np.isnan(staged.cache[side][:, 2:]).all()


def test_values_are_those_of_the_plain_product(bench: Workbench) -> None:
    of = make(2, 64)
    x, w = of.upload(bench)
    y = bench.empty((2, w.n), of.dtype)
    gemv(bench.kernels, bench.stream, x, w, y)
    left = step(bench, of, 0, head_dim=64)
    plain = bench.download(y).reshape(2, HEADS + 2 * KV_HEADS, 64)
    assert np.array_equal(left.cache["values"][:, :2].transpose(1, 0, 2), plain[:, HEADS + KV_HEADS :])


@pytest.mark.parametrize("positions", [CAPACITY + 8, CAPACITY, CAPACITY - 3])
def test_positions_beyond_the_cache_or_the_table_set_the_status_and_write_nothing(
    bench: Workbench, positions: int
) -> None:
    of, last = make(3, 64), min(positions, CAPACITY) - 1
    fits = step(bench, replace(of, x=of.x[:1]), last, head_dim=64, positions=positions)
    full = step(bench, of, last, head_dim=64, positions=positions)
    assert (fits.status, full.status) == (0, STATUS_FULL)
    assert np.array_equal(full.q[0], fits.q[0])
    assert np.isnan(full.q[1:]).all()
    for side in SIDES:
        assert np.array_equal(full.cache[side], fits.cache[side], equal_nan=True)
