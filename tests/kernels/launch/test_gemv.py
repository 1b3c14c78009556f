"""The GEMV family on the emulator: cases within their bounds, one result for every M, exact weights, refusals."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from kernels.arrays import Activation
from kernels.cases.cache import rounded
from kernels.cases.gemv import cases
from kernels.cases.products import Product, product
from kernels.kernel import Case
from kernels.launch.gemv import KERNELS, gemv, gemv_residual, gemv_swiglu, warps_for
from kernels.packing import IntWeight, pack
from kernels.packing.t16 import GROUP_SIZES
from kernels.reference import gemv as reference
from kernels.selftest.running import error_fraction
from kernels.workbench import Workbench
from tests.kernels.launch.cancelling import cancelling

CASES = list(cases())
DTYPES: tuple[Activation, ...] = ("f16", "bf16")


def output_of(bench: Workbench, of: Product, tokens: slice = slice(None)) -> np.ndarray:
    """gemv of some of the tokens, f32."""
    some = replace(of, x=of.x[tokens])
    x, w = some.upload(bench)
    y = bench.empty((some.x.shape[0], w.n), of.dtype)
    gemv(bench.kernels, bench.stream, x, w, y)
    return bench.download(y).astype(np.float32)


def assert_within(case: Case, outputs: dict[str, np.ndarray]) -> None:
    assert outputs.keys() == case.expected.keys()
    for name, expected in case.expected.items():
        assert outputs[name].shape == expected.shape
        fraction = error_fraction(outputs[name], expected, case.bound.get(name))
        assert fraction <= 1.0, (name, fraction)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.entry)
def test_outputs_are_within_the_derived_bound(bench: Workbench, case: Case) -> None:
    assert_within(case, dict(case.run(bench)))
    assert bench.kernels.launched == {case.entry: 1}


def test_the_cases_cover_every_entry() -> None:
    assert {case.entry for case in CASES} == {entry for kernel in KERNELS for entry in kernel.entries}


@pytest.mark.usefixtures("schedule")
def test_no_schedule_changes_a_bit(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    for case in CASES[::3]:  # of each symbol some, of each group size and dtype too
        shuffled = case.run(bench)
        monkeypatch.setenv("EMULATOR_SEED", "0")
        plain = case.run(bench)
        for name, values in plain.items():
            assert np.array_equal(shuffled[name], values), (case.entry, name)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("group", "k"), [(32, 1120), (64, 640), (128, 1408)])
def test_a_token_gives_the_same_bits_in_any_company(bench: Workbench, group: int, k: int, dtype: Activation) -> None:
    of = product(group, 8, 21, k, group, dtype)
    single = np.concatenate([output_of(bench, of, slice(m, m + 1)) for m in range(8)])
    for tokens in range(2, 9):
        assert np.array_equal(output_of(bench, of, slice(0, tokens)), single[:tokens])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("group", GROUP_SIZES)
def test_unit_vectors_read_back_every_weight(bench: Workbench, group: int, dtype: Activation) -> None:
    """A one in column k gives (q - z)·s of that column, rounded once to the type of the output."""
    k = 160 if group == 32 else 128 + group
    of = product(5, 8, 19, k, group, dtype)
    steps = of.weight.q.astype(np.float32) - np.repeat(of.weight.zeros, group, axis=1)
    exact = steps * np.repeat(of.weight.scales.astype(np.float32), group, axis=1)
    expected = rounded(exact, dtype)
    units = np.eye(k)
    for start in range(0, k, 8):
        found = output_of(bench, replace(of, x=units[start : start + 8]))
        assert np.array_equal(found, expected[:, start : start + 8].T)


@pytest.mark.parametrize("group", GROUP_SIZES)
def test_f16_weights_are_q_minus_z_times_s_rounded_as_f16_rounds_it(bench: Workbench, group: int) -> None:
    """The product of two f16 values in numpy's own f16 arithmetic, as AutoAWQ computes it."""
    of = product(6, 8, 16, group, group, "f16")
    steps = of.weight.q.astype(np.float16) - np.repeat(of.weight.zeros, group, axis=1).astype(np.float16)
    expected = (steps * np.repeat(of.weight.scales, group, axis=1)).T
    found = np.concatenate([output_of(bench, replace(of, x=np.eye(group)[i : i + 8])) for i in range(0, group, 8)])
    assert np.array_equal(found.astype(np.float16), expected)


@pytest.mark.parametrize("group", GROUP_SIZES)
def test_a_scale_moved_by_two_ulps_leaves_the_bound(bench: Workbench, group: int) -> None:
    """With K = one group a wrong scale has nowhere to hide: each row's own, in f16 outputs and in f32 ones."""
    of = product(7, 8, 16, group, group, "f16")
    w = of.dequantized()
    expected, error = reference.gemv(of.x, w), reference.accumulation(of.x, w, group)
    rounding = reference.rounding(expected, error, "f16")
    assert (np.abs(output_of(bench, of) - expected) <= rounding).all()
    moved = of.weight.scales.copy()
    moved.view(np.uint16)[:] += 2
    wrong = replace(of, weight=replace(of.weight, scales=moved))
    assert (np.abs(output_of(bench, wrong) - expected) > rounding).any(axis=0).all()
    x, weight = wrong.upload(bench)
    residual = bench.upload(np.zeros((8, 16)), "f32")
    gemv_residual(bench.kernels, bench.stream, x, weight, residual)
    assert (np.abs(bench.download(residual) - expected) > reference.rounding(expected, error, "f32")).any(axis=0).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_that_cancel_keep_what_is_left(bench: Workbench, dtype: Activation) -> None:
    """Large equal and opposite halves, and a rest 2^-12 of them."""
    of = cancelling(4, dtype)
    expected = reference.gemv(of.x, of.dequantized())
    magnitudes = np.abs(of.x) @ np.abs(of.dequantized()).T
    assert np.abs(expected).max() < magnitudes.min() / 50
    bound = reference.rounding(expected, reference.accumulation(of.x, of.dequantized(), 64), dtype)
    assert (np.abs(output_of(bench, of) - expected) <= bound).all()


def test_negative_inputs_give_negated_outputs(bench: Workbench) -> None:
    of = product(9, 3, 24, 256, 128, "f16")
    assert np.array_equal(output_of(bench, replace(of, x=-of.x)), -output_of(bench, of))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_finite_reaches_its_token_and_no_other(bench: Workbench, dtype: Activation, value: float) -> None:
    of = product(10, 3, 16, 256, 64, dtype)
    of.x[1, 131] = value
    x, w = of.upload(bench)
    y, halves = bench.empty((3, 16), dtype), bench.empty((3, 8), dtype)
    residual = bench.upload(np.zeros((3, 16)), "f32")
    gemv(bench.kernels, bench.stream, x, w, y)
    gemv_swiglu(bench.kernels, bench.stream, x, w, halves)
    gemv_residual(bench.kernels, bench.stream, x, w, residual)
    for found in (bench.download(array).astype(np.float32) for array in (y, halves, residual)):
        assert np.isfinite(found[[0, 2]]).all()
        assert np.isnan(found[1]).all() if np.isnan(value) else not np.isfinite(found[1]).any()


@pytest.mark.parametrize("group", GROUP_SIZES)
def test_nothing_behind_the_arrays_is_read(bench: Workbench, group: int) -> None:
    """All of them end where their memory ends, which the emulator guards; with groups of 32 half a tile is missing."""
    k = 3 * group
    of = product(11, 4, 512, k, group, "f16")
    tensors = pack(of.weight, "t16")
    assert [tensor.nbytes % 256 for tensor in (*tensors.values(), of.x.astype(np.float16))] == [0] * 4
    expected = reference.gemv(of.x, of.dequantized())
    bound = reference.rounding(expected, reference.accumulation(of.x, of.dequantized(), group), "f16")
    assert (np.abs(output_of(bench, of) - expected) <= bound).all()


def test_silu_of_large_gates_is_the_gate_or_zero(bench: Workbench) -> None:
    """Gates of +-800: 800·up and -0·up, not NaN."""
    weight = IntWeight(np.full((16, 64), 9, np.uint8), np.full((16, 1), 8, np.uint8), np.ones((16, 1), np.float16), 64)
    x = np.zeros((2, 64))
    x[:, 0] = [200.0, -200.0]
    weight.scales[:8] = 4  # gate rows
    weight.scales[8:] = 0.25
    of = Product(x, weight, "f16")
    xs, w = of.upload(bench)
    y = bench.empty((2, 8), "f16")
    gemv_swiglu(bench.kernels, bench.stream, xs, w, y)
    assert bench.download(y).tolist() == [[40000.0] * 8, [0.0] * 8]


@pytest.mark.parametrize(
    ("group", "k"), [(32, 96), (32, 544), (32, 4128), (64, 4160), (64, 4544), (128, 128), (128, 4736), (128, 18944)]
)
def test_warps_share_rows_of_any_length(bench: Workbench, group: int, k: int) -> None:
    """All inputs are one: a step that no warp takes, or that two take, is missed or counted twice in the sum."""
    of = product(12, 1, 16, k, group, "f16")
    of.x[:] = 1.0
    x, w = of.upload(bench)
    residual = bench.upload(np.zeros((1, 16)), "f32")
    gemv_residual(bench.kernels, bench.stream, x, w, residual)
    expected = reference.gemv(of.x, of.dequantized())
    assert (np.abs(bench.download(residual) - expected) <= reference.accumulation(of.x, of.dequantized(), group)).all()
    assert warps_for(k) == min(8, (k + 511) // 512)
