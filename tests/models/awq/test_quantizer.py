"""The quantiser in torch: the packing's values bit for bit, and how they stand to the published formula."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels.packing import quantize_nearest
from models.awq import fake_quantize, integer_weight
from models.awq import quantizer as quantizer_module

GROUPS = (32, 64, 128, -1)


def published(weight: Tensor, group_size: int) -> Tensor:
    """The published formula: the range of a group is its own, the scale is not rounded."""
    grouped = weight.reshape(-1, group_size)
    high, low = grouped.amax(1, keepdim=True), grouped.amin(1, keepdim=True)
    scales = (high - low).clamp(min=1e-5) / 15
    zeros = (-torch.round(low / scales)).clamp(0, 15)
    return ((torch.clamp(torch.round(grouped / scales) + zeros, 0, 15) - zeros) * scales).reshape(weight.shape)


def exact_weight(seed: int, rows: int, groups: int, size: int) -> Tensor:
    """Groups that contain 0 and span 15 steps of a scale that f16 holds."""
    rng = np.random.default_rng(seed)
    scales = rng.integers(1024, 2048, (rows, groups, 1)) * 2.0**-17
    zeros = rng.integers(0, 16, (rows, groups, 1))
    levels = rng.integers(0, 16, (rows, groups, size)) + rng.uniform(-0.49, 0.49, (rows, groups, size))
    levels = levels.clip(0, 15)
    levels[..., 0], levels[..., 1] = 0, 15
    return torch.from_numpy(((levels - zeros) * scales).astype(np.float32).reshape(rows, groups * size))


@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_behaviour_17_values_are_the_published_ones_where_range_and_scale_allow(group_size: int) -> None:
    weight = exact_weight(group_size, 24, 3, group_size)
    assert torch.equal(fake_quantize(weight, group_size), published(weight, group_size))


@pytest.mark.parametrize("sign", [1, -1])
def test_behaviour_17_a_group_of_one_sign_does_not_saturate(sign: int) -> None:
    constant = torch.full((1, 32), 0.5 * sign)
    assert (published(constant, 32) - constant).abs().max() > 0.4  # the defect of the published formula
    assert (fake_quantize(constant, 32) - constant).abs().max() < 2e-4  # 0.5 / 15 in f16
    generator = torch.Generator().manual_seed(5)
    weight = sign * (torch.rand(16, 128, generator=generator) + 0.5)
    ours, theirs = ((item - weight).square().mean() for item in (fake_quantize(weight, 32), published(weight, 32)))
    assert ours < theirs / 4


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 9),
    st.integers(1, 4),
    st.sampled_from(GROUPS),
    st.sampled_from([4, 8]),
    st.sampled_from([1e-9, 1e-4, 1.0, 3e4]),
    st.sampled_from([-2.0, 0.0, 2.0]),
)
def test_behaviour_17_values_are_the_packings_bit_for_bit(
    seed: int, rows: int, groups: int, group_size: int, bits: int, size: float, shift: float
) -> None:
    weight = (torch.randn(rows, 128 * groups, generator=torch.Generator().manual_seed(seed)) + shift) * size
    weight[0, : 128 if group_size == -1 else group_size] = 0
    packed = quantize_nearest(weight.numpy(), 128 * groups if group_size == -1 else group_size, bits)
    assert np.array_equal(fake_quantize(weight, group_size, bits).numpy(), packed.dequantize())
    if bits == 4:
        assert integer_weight(weight, group_size).equals(packed)


def test_the_block_size_does_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(37, 64, generator=torch.Generator().manual_seed(1))
    whole = fake_quantize(weight, 32)
    monkeypatch.setattr(quantizer_module, "BLOCK_ELEMENTS", 100)
    assert torch.equal(fake_quantize(weight, 32), whole)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_weights_are_read_as_the_floats_they_are(dtype: torch.dtype) -> None:
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(2)).to(dtype)
    assert torch.equal(fake_quantize(weight, 32), fake_quantize(weight.float(), 32))


@pytest.mark.parametrize(("width", "group_size"), [(96, 64), (64, 0), (64, -2)])
def test_a_group_that_does_not_divide_is_refused(width: int, group_size: int) -> None:
    with pytest.raises(ValueError, match=f"groups of {group_size} do not divide {width} inputs"):
        fake_quantize(torch.zeros(2, width), group_size)
    with pytest.raises(ValueError, match=f"groups of {group_size} do not divide {width} inputs"):
        integer_weight(torch.zeros(2, width), group_size)


def test_values_beyond_the_scales_are_not_finite_rather_than_wrong() -> None:
    weight = torch.zeros(2, 32)
    weight[0, 0], weight[1, 0] = 2e6, float("nan")
    assert not fake_quantize(weight, 32).isfinite().all(1).any()
    with pytest.raises(ValueError, match="not finite|more than f16"):
        integer_weight(weight, 32)


@pytest.mark.parametrize("tokens", [1, 7, 8, 33, 65, 129, 193])
@pytest.mark.parametrize("group_size", [128, 64, 32])
def test_behaviour_19_stored_halves_compute_what_fake_quantisation_does(tokens: int, group_size: int) -> None:
    """Kernels compute with q·s + sz, sz = −s·z in f16; 896 inputs and 136 outputs are handled."""
    generator = torch.Generator().manual_seed(tokens)
    weight, x = torch.randn(136, 896, generator=generator) * 0.05, torch.randn(tokens, 896, generator=generator).half()
    integers = integer_weight(weight, group_size)
    s = torch.from_numpy(integers.scales)
    sz = (-s.float() * torch.from_numpy(integers.zeros)).half()
    q = torch.from_numpy(integers.q).view(136, -1, group_size).float()
    stored = (q * s[..., None].float() + sz[..., None].float()).view(136, 896).half()
    kernel = (x.float() @ stored.float().T).half().float()
    expected = x.float() @ fake_quantize(weight, group_size).T
    roundings = (
        sz.float().abs().repeat_interleave(group_size, 1) + stored.float().abs()
    ) * 2.0**-11  # half a step each
    bound = x.float().abs() @ roundings.T + expected.abs() * 2.0**-10 + 1e-6
    assert ((kernel - expected).abs() <= bound).all()
    assert (kernel - expected).square().mean() < (expected - x.float() @ weight.T).square().mean() / 1000


def test_behaviour_19_a_group_that_896_inputs_do_not_hold_is_refused() -> None:
    with pytest.raises(ValueError, match="groups of 256 do not divide 896 inputs"):
        integer_weight(torch.zeros(136, 896), 256)
