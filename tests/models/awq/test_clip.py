"""The clip search where it takes shortcuts; its choices themselves are checked in test_search.py."""

from __future__ import annotations

import pytest
import torch

from models.awq import AwqSettings, fake_quantize
from models.awq import clip as clip_module
from models.awq.clip import clip_maxima


def example(rows: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows + tokens)
    return torch.randn(rows, 64, generator=generator), torch.randn(tokens, 64, generator=generator)


def errors(weight: torch.Tensor, inputs: torch.Tensor, maxima: torch.Tensor, group: int) -> torch.Tensor:
    """The mean squared change of the share of each group, [N, G], in float64."""
    bounds = maxima.repeat_interleave(group, 1)
    change = (fake_quantize(weight.clamp(-bounds, bounds), group) - weight).double()
    parts = change.view(len(weight), 1, -1, group) * inputs.double().view(1, len(inputs), -1, group)
    return parts.sum(3).square().mean(1)


@pytest.mark.parametrize("tokens", [1, 9, 32, 33, 200])
@pytest.mark.parametrize("rows", [1, 7, 65])
def test_any_number_of_rows_and_tokens_gets_the_best_candidate(rows: int, tokens: int) -> None:
    weight, inputs = example(rows, tokens)
    maxima = clip_maxima(weight, inputs, AwqSettings(32))
    full = weight.view(rows, 2, 32).abs().amax(2)
    candidates = torch.stack([errors(weight, inputs, full * (1 - step / 20), 32) for step in range(10)])
    torch.testing.assert_close(errors(weight, inputs, maxima, 32), candidates.amin(0), rtol=1e-3, atol=1e-9)
    assert maxima.shape == (rows, 2)


def test_the_block_of_rows_does_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, inputs = example(13, 50)
    whole = clip_maxima(weight, inputs, AwqSettings(-1))
    monkeypatch.setattr(clip_module, "BLOCK_ELEMENTS", 200)
    assert torch.equal(clip_maxima(weight, inputs, AwqSettings(-1)), whole)
    assert whole.shape == (13, 1)


def test_settings_decide_how_far_down_it_looks() -> None:
    weight, inputs = example(40, 50)
    full = weight.view(40, 2, 32).abs().amax(2)
    assert torch.equal(clip_maxima(weight, inputs, AwqSettings(32, clip_shrink=0.05)), full)
    assert (clip_maxima(weight, inputs, AwqSettings(32)) < full).any()


def test_of_candidates_that_are_alike_the_widest_is_kept() -> None:
    weight, inputs = example(5, 50)
    inputs[:, :32] = 0
    maxima = clip_maxima(weight, inputs, AwqSettings(32))
    assert torch.equal(maxima[:, 0], weight[:, :32].abs().amax(1))
