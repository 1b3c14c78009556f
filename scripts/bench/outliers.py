"""Plants outlier channels, as large models have them, in a small model without changing what it computes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

FACTOR = 64  # a power of two: products keep their bits
FRACTION = 4 / 128  # of the channels


@torch.no_grad()
def plant(norm: nn.Module, linears: Sequence[nn.Linear], channels: Tensor, factor: float = FACTOR) -> None:
    """Multiply ``channels`` of a norm's output by ``factor`` and divide the columns that they feed, in place."""
    for parameter in norm.parameters(recurse=False):  # gain, and bias where there is one
        parameter[channels] *= factor
    for linear in linears:
        linear.weight[:, channels] /= factor


def plant_in_decoder(llm: Any, seed: int = 0) -> None:
    """Outliers in both norms of every layer of a Llama or Qwen2, other channels each time, in place."""
    generator = torch.Generator().manual_seed(seed)
    for layer in llm.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        plant(
            layer.input_layernorm,
            (attention.q_proj, attention.k_proj, attention.v_proj),
            _channels(layer.input_layernorm, generator),
        )
        plant(
            layer.post_attention_layernorm,
            (mlp.gate_proj, mlp.up_proj),
            _channels(layer.post_attention_layernorm, generator),
        )


def _channels(norm: Any, generator: torch.Generator) -> Tensor:
    width = len(norm.weight)
    return torch.randperm(width, generator=generator)[: round(width * FRACTION)]
