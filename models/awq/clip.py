"""The search for clip maxima: a group whose extremes are cut rounds finer inside.

Queries and keys are left alone: their product is what counts, and an error of one alone says little about it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.awq.apply import ClipChoice, ScaleChoice, clamp_groups, scaled_weight
from models.awq.layers import LINEARS, Seen
from models.awq.quantizer import fake_quantize, group_size_for
from models.awq.search import AwqSettings

CLIPPED = tuple(name for name in LINEARS if not name.endswith(("q_proj", "k_proj")))
BLOCK_ELEMENTS = 1 << 20


@torch.no_grad()
def search_clips(
    layer: nn.Module, seen: Seen, choices: Sequence[ScaleChoice], settings: AwqSettings
) -> list[ClipChoice]:
    """Maxima for each linear but queries and keys, on its weight scaled by ``choices`` and inputs divided by them.

    For each row and group the factor 1, 0.95, … whose rounded weights change that group's share of the dot product
    least, over the sampled tokens; the first of equals. Any number of tokens and rows.
    Source: mit-han-lab/llm-awq, auto_clip, which fails on fewer than 512 tokens and on other rows than multiples of 64.
    """
    found = []
    for name in CLIPPED:
        parameter = layer.get_submodule(name).weight
        assert isinstance(parameter, Tensor)
        inputs = seen.sampled(name, settings.clip_tokens)
        for choice in choices:
            if name in choice.linears:
                inputs = inputs / choice.scales
        found.append(ClipChoice(name, clip_maxima(scaled_weight(name, parameter, choices), inputs, settings)))
    return found


def clip_maxima(weight: Tensor, inputs: Tensor, settings: AwqSettings) -> Tensor:
    """The maxima f32 [N, G] of a weight f32 [N, K] for inputs f32 [tokens, K]."""
    size = group_size_for(weight.shape[1], settings.group_size)
    grouped = inputs.view(len(inputs), -1, size).transpose(0, 1)  # [G, tokens, size]
    # Σ (x·Δ)² is Δᵀ(Σ xxᵀ)Δ, which costs less as soon as there are more tokens than inputs in a group
    gram = grouped.transpose(1, 2) @ grouped if len(inputs) > size else None
    rows = max(1, BLOCK_ELEMENTS // weight.shape[1])
    blocks = []
    for block in weight.split(rows):
        full = block.view(len(block), -1, size).abs().amax(2)
        best, least = full.clone(), torch.full_like(full, float("inf"))
        for step in range(round(settings.clip_steps * settings.clip_shrink)):
            maxima = full * (1 - step / settings.clip_steps)
            change = fake_quantize(clamp_groups(block, maxima), size).sub_(block)
            error = _errors(change.view(len(block), -1, size).transpose(0, 1), grouped, gram)
            better = error < least
            least = torch.where(better, error, least)
            best = torch.where(better, maxima, best)
        blocks.append(best)
    return torch.cat(blocks)


def _errors(change: Tensor, inputs: Tensor, gram: Tensor | None) -> Tensor:
    """The mean squared change of each group's dot product [N, G]; ``change`` [G, N, size], ``inputs`` [G, m, size]."""
    if gram is not None:
        return (((change @ gram) * change).sum(2) / inputs.shape[1]).T
    return (change @ inputs.transpose(1, 2)).square_().mean(2).T
