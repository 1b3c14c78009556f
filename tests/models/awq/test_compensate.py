"""Rounding that makes up for itself, against the least-squares problem that it solves column by column."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.awq import compensate, fake_quantize, integer_weight
from models.awq.compensate import compensated, error_factors, inverse_factor
from models.awq.layers import watch
from tests.models.awq.tiny_layers import batches, decoder, prompts


def inputs(width: int, tokens: int = 300, seed: int = 0) -> Tensor:
    """Correlated inputs [tokens, K] in float64."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=generator, dtype=torch.float64)
    return torch.randn(tokens, width, generator=generator, dtype=torch.float64) @ (mix + torch.eye(width))


def factors(x: Tensor, block: int) -> list[Tensor]:
    return [inverse_factor(part.T @ part) for part in x.split(block, 1)]


def plainly(weight: Tensor, x: Tensor, group: int) -> Tensor:
    """Each column rounded where least squares puts it, given all columns rounded before it; float64."""
    gram = x.T @ x
    gram += torch.eye(len(gram)) * gram.diagonal().mean() * 0.01
    weight, result = weight.double(), torch.zeros_like(weight, dtype=torch.float64)

    def moved(done: int) -> Tensor:
        change = result[:, :done] - weight[:, :done]
        return weight[:, done:] - torch.linalg.solve(gram[done:, done:], gram[done:, :done] @ change.T).T

    for row in range(len(weight)):
        for start in range(0, weight.shape[1], group):
            levels = moved(start)[row, :group]
            low, high = min(float(levels.min()), 0.0), max(float(levels.max()), 0.0)
            scale = float(np.float16((high - low) / 15))
            zero = min(max(round(-low / scale), 0), 15)
            for j in range(group):
                level = min(max(round(float(moved(start + j)[row, 0]) / scale) + zero, 0), 15)
                if j == int(levels.argmin()) and low < 0:
                    level = 0
                if j == int(levels.argmax()) and high > 0:
                    level = 15
                result[row, start + j] = (level - zero) * scale
    return result


@pytest.mark.parametrize("segment", [128, 3])
def test_columns_move_to_where_least_squares_puts_them(segment: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compensate, "SEGMENT_COLUMNS", segment)
    weight, x = torch.randn(5, 24, generator=torch.Generator().manual_seed(2)), inputs(24)
    torch.testing.assert_close(
        compensated(weight, factors(x, 24), 8).double(), plainly(weight, x, 8), rtol=1e-6, atol=0
    )


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([(64, 32), (96, 32), (128, 64), (128, -1), (160, 32)]),
    st.sampled_from([128, 20, 7]),
    st.sampled_from([1e-9, 1e-5, 1e-2, 1.0, 1e3]),
    st.sampled_from([-3.0, 0.0, 3.0]),
)
def test_round_to_nearest_gives_the_result_back_bit_for_bit(
    seed: int, shape: tuple[int, int], block: int, size: float, shift: float
) -> None:
    width, group = shape
    weight = (torch.randn(6, width, generator=torch.Generator().manual_seed(seed)) + shift) * size
    weight[0] = 0
    weight[1] = weight[1].abs()
    weight[2, :32] *= 1e-8
    found = compensated(weight, factors(inputs(width, seed=seed % 1000), block), group)
    assert np.array_equal(integer_weight(found, group).dequantize(), found.numpy())
    assert not found[0].any()


@pytest.mark.parametrize("block", [64, 256])
def test_the_output_is_nearer_than_after_plain_rounding(block: int) -> None:
    weight, x = torch.randn(32, 256, generator=torch.Generator().manual_seed(1)), inputs(256)
    ours, plain = (
        ((item.double() - weight.double()) @ x.T).square().mean()
        for item in (compensated(weight, factors(x, block), 64), fake_quantize(weight, 64))
    )
    assert ours < 0.9 * plain


def test_factors_are_those_of_the_weighted_inputs_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compensate, "BLOCK_COLUMNS", 40)
    model = decoder("qwen2")
    seen = watch(model.model.layers[0], batches(model, prompts(64)), relative=True)
    x = torch.cat(seen.of("mlp.down_proj")).double()
    weights = torch.cat([item.flatten() for item in seen.weights]).double()
    found = error_factors(seen, "mlp.down_proj")
    assert [len(item) for item in found] == [40, 40, 16]
    for part, factor in zip(x.split(40, 1), found, strict=True):
        gram = (part * weights[:, None]).T @ part
        gram += torch.eye(len(gram)) * gram.diagonal().mean() * 0.01
        torch.testing.assert_close(
            (factor.T @ factor).double() @ gram, torch.eye(len(gram)).double(), atol=2e-3, rtol=0
        )


def test_inputs_that_are_all_zero_leave_plain_rounding() -> None:
    weight = torch.randn(4, 32, generator=torch.Generator().manual_seed(3))
    assert torch.equal(
        compensated(weight, [inverse_factor(torch.zeros(32, 32).double())], 32), fake_quantize(weight, 32)
    )
