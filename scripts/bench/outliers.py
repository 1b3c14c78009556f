"""Plants outlier channels, as large models have them, in a small model without changing what it computes.

In large models the outlier channels are the ones that the model cannot do without. In the demo decoders any four
channels of a norm can go and hardly an answer changes, so that outliers in channels drawn by chance show nothing:
``critical_channels`` finds those whose loss hurts most, one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

FACTOR = 64  # a power of two: products keep their bits
FRACTION = 4 / 128  # of the channels
CANDIDATES = 4  # tried for each channel that is chosen


@torch.no_grad()
def plant(norm: nn.Module, linears: Sequence[nn.Linear], channels: Tensor, factor: float = FACTOR) -> None:
    """Multiply ``channels`` of a norm's output by ``factor`` and divide the columns that they feed, in place."""
    for parameter in norm.parameters(recurse=False):  # gain, and bias where there is one
        parameter[channels] *= factor
    for linear in linears:
        linear.weight[:, channels] /= factor


def norms(llm: Any) -> Iterator[tuple[nn.Module, tuple[nn.Linear, ...]]]:
    """Each norm of a Llama or Qwen2 with the linears that it feeds (not the last, which feeds the head)."""
    for layer in llm.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        yield layer.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)
        yield layer.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj)


def plant_in_decoder(llm: Any, channels: Sequence[Tensor]) -> None:
    """Outliers in both norms of every layer, in place; ``channels`` for each norm in the order of ``norms``."""
    for (norm, linears), chosen in zip(norms(llm), channels, strict=True):
        plant(norm, linears, chosen)


def random_channels(llm: Any, seed: int = 0) -> list[Tensor]:
    """Four of 128 channels of each norm, drawn by chance."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randperm(width, generator=generator)[: _count(width)] for width in _widths(llm)]


def critical_channels(llm: Any, loss: Callable[[], Tensor]) -> list[Tensor]:
    """Four of 128 channels of each norm without which ``loss()``, run on this ``llm``, is large; weights come back.

    Greedy: in each round every norm loses one more channel, of those with the largest squared gradient the one that
    costs most given all that are lost already.
    """
    saved = [linear.weight.clone() for _, linears in norms(llm) for linear in linears]
    chosen: list[list[int]] = [[] for _ in norms(llm)]
    for _ in range(_count(_widths(llm)[0])):
        strengths = _strengths(llm, loss)
        for (_, linears), lost, strength in zip(norms(llm), chosen, strengths, strict=True):
            strength[lost] = -1
            tried = strength.topk(CANDIDATES).indices.tolist()
            lost.append(max(tried, key=lambda channel, at=linears: _loss_without(at, channel, loss)))
            _clear(linears, lost[-1])
    with torch.no_grad():
        for weight, old in zip((linear.weight for _, linears in norms(llm) for linear in linears), saved, strict=True):
            weight.copy_(old)
    return [torch.tensor(lost) for lost in chosen]


def _strengths(llm: Any, loss: Callable[[], Tensor]) -> list[Tensor]:
    """For each norm and channel the squared gradient of the loss by a factor on the channel, summed over the batch."""
    masks: list[Tensor] = []

    def masked(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        masks.append(torch.ones(len(output), 1, output.shape[-1], requires_grad=True))
        return output * masks[-1]

    hooks = [norm.register_forward_hook(masked) for norm, _ in norms(llm)]
    try:
        gradients = torch.autograd.grad(loss(), masks)
    finally:
        for hook in hooks:
            hook.remove()
    return [gradient.square().sum((0, 1)) for gradient in gradients]


@torch.no_grad()
def _loss_without(linears: Sequence[nn.Linear], channel: int, loss: Callable[[], Tensor]) -> float:
    saved = [linear.weight[:, channel].clone() for linear in linears]
    _clear(linears, channel)
    found = float(loss())
    for linear, column in zip(linears, saved, strict=True):
        linear.weight[:, channel] = column
    return found


@torch.no_grad()
def _clear(linears: Sequence[nn.Linear], channel: int) -> None:
    for linear in linears:
        linear.weight[:, channel] = 0


def _widths(llm: Any) -> list[int]:
    return [len(norm.weight) for norm, _ in norms(llm)]


def _count(width: int) -> int:
    return round(width * FRACTION)
