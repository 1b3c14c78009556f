"""What the search found, as plain data, and how it is moved into a layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


@dataclass
class ScaleChoice:
    """Scales f32 [K] for the inputs of ``linears``, whose inverse goes into ``previous``.

    ``losses`` are the mean squared errors of all ratios that were tried; the first is plain rounding's.
    """

    previous: str
    linears: tuple[str, ...]
    scales: Tensor
    ratio: float
    losses: tuple[float, ...]

    @property
    def loss(self) -> float:
        """Of the chosen ratio."""
        return min(loss for loss in self.losses if math.isfinite(loss))


@dataclass
class ClipChoice:
    """The scaled weight of ``linear`` is clamped to ±``maxima`` f32 [N, G] before it is rounded."""

    linear: str
    maxima: Tensor


@dataclass
class LayerSearch:
    """Everything that was found for one decoder layer, in the order in which it is applied."""

    scales: list[ScaleChoice]
    clips: list[ClipChoice] = field(default_factory=list)


@torch.no_grad()
def apply_search(layer: nn.Module, search: LayerSearch) -> None:
    """Move scales and clip maxima into the layer, in place.

    Scales alone leave what the layer computes as it was: norms (or rows and biases of the linear before) are divided,
    columns multiplied. Computed in f32, stored in the layer's dtype.
    """
    for name, module in layer.named_modules():
        if isinstance(module, nn.Linear):
            module.weight.copy_(scaled_weight(name, module.weight, search.scales))
            if module.bias is not None:
                module.bias.copy_(_scaled_rows(name, module.bias.float(), search.scales))
        elif isinstance(getattr(module, "weight", None), nn.Parameter):
            for parameter in module.parameters(recurse=False):  # a norm's weight, and its bias where it has one
                parameter.copy_(_scaled_rows(name, parameter.float(), search.scales))
    for clip in search.clips:
        weight = layer.get_submodule(clip.linear).weight
        assert isinstance(weight, Tensor)
        weight.copy_(clamp_groups(weight.float(), clip.maxima))


def scaled_weight(name: str, weight: Tensor, choices: Sequence[ScaleChoice]) -> Tensor:
    """The weight f32 [N, K] of linear ``name`` after all scales: columns multiplied, rows before others divided."""
    result = weight.detach().float()
    for choice in choices:
        if name in choice.linears:
            result = result * choice.scales.to(result.device)
    return _scaled_rows(name, result, choices)


def clamp_groups(weight: Tensor, maxima: Tensor) -> Tensor:
    """Each group of a weight [N, K] inside ± its maximum [N, G]."""
    bounds = maxima.to(weight.device)[..., None]
    grouped = weight.view(*maxima.shape, -1)
    return torch.minimum(torch.maximum(grouped, -bounds), bounds).view_as(weight)


def _scaled_rows(name: str, values: Tensor, choices: Sequence[ScaleChoice]) -> Tensor:
    """The last len(scales) rows are those that feed the scaled linears: where a linear makes more, the rest stay."""
    for choice in choices:
        if name == choice.previous:
            values = values.clone()
            values[-len(choice.scales) :] /= choice.scales.to(values.device).view(-1, *[1] * (values.dim() - 1))
    return values
