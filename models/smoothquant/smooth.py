"""Moves large activations into the weights: a norm's output is divided, the columns that it feeds are multiplied."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.vision_scales import F32, LINEARS, SMOOTHED, ActivationScales, linear_name
from models.vision_tower import VisionTower
from runtime.errors import ExportError


@torch.no_grad()
def smooth_layer(layer: nn.Module, index: int, scales: ActivationScales, alpha: float | None = None) -> dict[str, F32]:
    """Smooths one encoder layer in place; returns what each norm was divided by, by the norm's name.

    ``layer_norm1`` feeds q, k and v, ``layer_norm2`` fc1; in exact arithmetic the layer computes the same as before.
    ``alpha`` None: the one in ``scales``.
    """
    factors = {}
    for norm, linears in SMOOTHED.items():
        fed = [layer.get_submodule(linear) for linear in linears]
        largest = torch.stack([column_maxima(linear.weight) for linear in fed]).amax(0)
        factors[norm] = scales.smoothing(index, norm, largest.numpy(), alpha)
        factor = torch.from_numpy(factors[norm]).to(fed[0].weight.device)
        module = layer.get_submodule(norm)
        for parameter in (module.weight, module.bias):
            parameter.copy_(parameter.float() / factor)
        for linear in fed:
            linear.weight.copy_(linear.weight.float() * factor)
    return factors


def smooth_tower(tower: VisionTower, scales: ActivationScales, alpha: float | None = None) -> None:
    """Smooths every layer that was measured, in place. Raises ExportError when the tower does not fit ``scales``."""
    check_fits(tower, scales)
    for index in range(scales.layers):
        smooth_layer(tower.vision_tower.encoder.layers[index], index, scales, alpha)


def column_maxima(weight: Tensor) -> Tensor:
    """Largest |w| of each input channel of a weight [N, K], f32 [K] on the CPU."""
    return weight.detach().abs().amax(0).float().cpu()


def check_fits(tower: VisionTower, scales: ActivationScales) -> None:
    """Every measured linear layer exists and takes as many channels. Raises ExportError naming the first that not."""
    layers = tower.vision_tower.encoder.layers
    if scales.layers > len(layers):
        raise ExportError(f"the scales are of {scales.layers} layers, the vision tower has {len(layers)}")
    for index in range(scales.layers):
        for linear in LINEARS:
            name = linear_name(index, linear)
            measured, expected = scales.maxima[name].size, layers[index].get_submodule(linear).in_features
            if measured != expected:
                raise ExportError(f"the scales hold {measured} channels for {name}, which takes {expected}")
