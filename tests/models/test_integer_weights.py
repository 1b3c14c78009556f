"""Integers from the quantiser of ``models.awq`` to every layout, in plain Python from the layouts' descriptions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kernels.packing import IntWeight, pack, unpack
from models.awq import integer_weight


def plain_quantise(group: list[float]) -> tuple[list[int], int, float]:
    """One group in plain Python: range with 0 in it, scale in f16, integers against that scale, half to even."""
    low, high = min(0.0, *group), max(0.0, *group)
    scale = float(np.float16(np.float32(max(np.float32(high - low), np.float32(1e-5))) / np.float32(15)))
    zero = min(max(round(float(np.float32(-low) / np.float32(scale))), 0), 15)
    q = [min(max(round(float(np.float32(value) / np.float32(scale))) + zero, 0), 15) for value in group]
    return q, zero, scale


@pytest.mark.parametrize("group_size", [32, 64, 128, -1])
@pytest.mark.parametrize("shift", [0.0, 3.0, -3.0])
def test_behaviour_17_quantiser_values_are_bit_exact(group_size: int, shift: float) -> None:
    weight = torch.randn(6, 384, generator=torch.Generator().manual_seed(1)) + shift  # of one sign, when shifted
    found = integer_weight(weight, group_size)
    step = 384 if group_size == -1 else group_size
    for row in range(6):
        for at in range(0, 384, step):
            q, zero, scale = plain_quantise(weight[row, at : at + step].tolist())
            assert found.q[row, at : at + step].tolist() == q
            assert found.zeros[row, at // step] == zero
            assert float(found.scales[row, at // step]) == scale


def weight_of(n: int, k: int, group: int) -> IntWeight:
    rng = np.random.default_rng(n + k)
    sides = (n, k // group)
    scales = rng.uniform(1e-3, 0.1, sides).astype(np.float16)
    return IntWeight(
        rng.integers(0, 16, (n, k), dtype=np.uint8), rng.integers(0, 16, sides, dtype=np.uint8), scales, group
    )


@pytest.mark.parametrize(("n", "k", "group", "rows"), [(8, 384, 128, 8), (16, 1152, 128, 16), (8, 192, 64, 16)])
def test_behaviour_17_v2_packing_is_the_closed_form_and_its_padding_is_zero(
    n: int, k: int, group: int, rows: int
) -> None:
    weight = weight_of(n, k, group)
    tensors = pack(weight, "llm-awq-v2")
    expected = np.zeros((n // 4, k), np.uint16)
    for row in range(n):
        for column in range(k):
            at = 64 * (column // 64) + 16 * (row % 4) + 8 * ((column % 64) // 32) + column % 8
            expected[row // 4, at] |= int(weight.q[row, column]) << (4 * ((column % 32) // 8))
    assert np.array_equal(tensors["qweight"].view(np.uint16), expected)
    for name, values in (("scales", weight.scales), ("scaled_zeros", None)):
        stored = tensors[name]
        assert stored.shape == (rows, n)
        products = -(weight.scales.astype(np.float32) * weight.zeros).astype(np.float16)
        assert np.array_equal(stored[: k // group].T, products if values is None else values)
        assert not stored[k // group :].any()


@pytest.mark.parametrize("source", ["autoawq-gemv", "autoawq-gemm"])
def test_behaviour_17_v1_and_gemm_become_v2_through_the_integers(source: str) -> None:
    weight = weight_of(16, 896, 128)
    through = pack(unpack(pack(weight, source), source, weight.shape, 128), "llm-awq-v2")
    direct = pack(weight, "llm-awq-v2")
    assert all(np.array_equal(through[name], direct[name]) for name in direct)
    back = pack(unpack(through, "llm-awq-v2", weight.shape, 128), source)
    assert all(np.array_equal(back[name], tensor) for name, tensor in pack(weight, source).items())


def test_behaviour_17_padding_of_the_gemv_layout_is_zero() -> None:
    tensors = pack(weight_of(8, 896, 128), "autoawq-gemv")
    assert tensors["scales"].shape == (8, 8)
    assert not tensors["scales"][:, 7:].any()
    assert not (tensors["qzeros"].view(np.uint32) >> np.uint32(28)).any()
