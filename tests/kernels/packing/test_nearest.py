"""The round-to-nearest quantiser against a plain Python reference, and its promises."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from kernels.packing import quantize_nearest


def reference(group: np.ndarray, bits: int = 4) -> tuple[list[int], int, np.float16]:
    """One group in plain Python; ``round`` is half to even like the reference quantiser's."""
    top = 2**bits - 1
    low, high = min(0.0, float(group.min())), max(0.0, float(group.max()))
    scale = np.float16(np.float32(max(np.float32(high) - np.float32(low), np.float32(1e-5))) / np.float32(top))
    exact = np.float32(scale)
    zero = min(max(round(float(np.float32(-low) / exact)), 0), top)
    q = [min(max(round(float(np.float32(value) / exact)) + zero, 0), top) for value in group]
    return q, zero, scale


@settings(max_examples=60, deadline=None)
@given(arrays(np.float32, (3, 64), elements=st.floats(-9, 9, width=32)), st.sampled_from([4, 8]))
def test_values_equal_the_reference(weight: np.ndarray, bits: int) -> None:
    result = quantize_nearest(weight, 32, bits)
    assert result.bits == bits
    for row in range(3):
        for group in range(2):
            q, zero, scale = reference(weight[row, 32 * group : 32 * group + 32], bits)
            assert result.scales[row, group] == scale
            assert result.zeros[row, group] == zero
            assert result.q[row, 32 * group : 32 * group + 32].tolist() == q


def test_integers_are_rounded_against_the_stored_scale() -> None:
    weight = np.random.default_rng(2).normal(0, 1, (64, 128)).astype(np.float32)
    result = quantize_nearest(weight, 128)
    for row in range(64):  # with the scale before its rounding to f16, some thirty of these integers differ
        assert result.q[row].tolist() == reference(weight[row])[0]


@settings(max_examples=40, deadline=None)
@given(arrays(np.float32, (2, 32), elements=st.floats(-50, 50, width=32)), st.sampled_from([-20.0, 0.0, 20.0]))
def test_error_is_at_most_one_step_even_for_groups_of_one_sign(weight: np.ndarray, shift: float) -> None:
    shifted = weight + np.float32(shift)
    result = quantize_nearest(shifted, 32)
    steps = np.abs(result.dequantize() - shifted) / result.scales.astype(np.float32)
    # Half a step of rounding, half of the rounded zero point, 15 levels of the f16 scale's own rounding.
    assert steps.max() <= 1.02


def test_a_constant_group_keeps_its_value() -> None:
    for value in (0.5, -0.5, 3.0):
        result = quantize_nearest(np.full((1, 32), value, np.float32), 32).dequantize()
        np.testing.assert_allclose(result, value, rtol=1e-3)


def test_zero_stays_zero() -> None:
    weight = np.random.default_rng(0).normal(2, 1, (4, 64)).astype(np.float32)
    weight[:, ::5] = 0
    assert (quantize_nearest(weight, 64).dequantize()[:, ::5] == 0).all()
    assert (quantize_nearest(np.zeros((1, 32), np.float32), 32).dequantize() == 0).all()


def test_blocks_of_rows_give_the_same_integers() -> None:
    weight = np.random.default_rng(1).normal(0, 1, (10, 128)).astype(np.float32)
    whole = quantize_nearest(weight, 64)
    parts = [quantize_nearest(weight[rows], 64) for rows in (slice(0, 3), slice(3, 10))]
    assert np.array_equal(whole.q, np.concatenate([part.q for part in parts]))
    assert np.array_equal(whole.scales, np.concatenate([part.scales for part in parts]))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    weight = np.zeros((2, 32), np.float32)
    weight[1, 3] = value
    with pytest.raises(ValueError, match="not finite"):
        quantize_nearest(weight, 32)


def test_a_range_above_f16_and_a_group_that_does_not_divide_are_refused() -> None:
    weight = np.zeros((1, 32), np.float32)
    weight[0, 0] = 2e6
    with pytest.raises(ValueError, match="a group spans 2e"):
        quantize_nearest(weight, 32)
    with pytest.raises(ValueError, match="groups of 24 do not divide its 32 inputs"):
        quantize_nearest(weight, 24)
    with pytest.raises(ValueError, match="bits is 3"):
        quantize_nearest(weight, 32, 3)


def test_eight_bits_are_sixteen_times_finer() -> None:
    weight = np.random.default_rng(4).normal(0, 1, (32, 256)).astype(np.float32)
    errors = [np.abs(quantize_nearest(weight, 128, bits).dequantize() - weight).mean() for bits in (4, 8)]
    assert 12 < errors[0] / errors[1] < 22
