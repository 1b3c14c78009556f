"""The search for activation-aware scales of one decoder layer.

Scales are a power of the mean size of each input channel, normalised; the power ("ratio") whose quantised weights
change the output of the inspected module least is kept. Ratio 0 is plain rounding, so the result is never worse than
it on the calibration inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.awq.apply import ScaleChoice
from models.awq.layers import ScaleGroup, Seen, run_attention, scale_groups
from models.awq.quantizer import fake_quantize
from runtime.errors import ExportError

MIN_SCALE = 1e-4
Loss = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class AwqSettings:
    """How to quantise; ``AwqSettings.published()`` is the method as its authors published it.

    group_size: 32, 64, 128 or -1 (whole rows). ratio_steps: ratios 0, 1/steps, … below 1. clip: search clip maxima
    too, of ``clip_steps``·``clip_shrink`` candidates down to 1 − clip_shrink, on about ``clip_tokens`` tokens.
    Beyond the published method: ``relative`` weighs the error at each token by the size of its hidden state, as the
    next norm does (otherwise a few tokens of huge states decide alone); ``compensate`` lets errors of rounding make up
    for each other, which gains several times what clips do, and more without them (scripts/bench/awq_accuracy.py).
    """

    group_size: int = 128
    ratio_steps: int = 20
    clip: bool = False
    clip_steps: int = 20
    clip_shrink: float = 0.5
    clip_tokens: int = 512
    relative: bool = True
    compensate: bool = True

    @classmethod
    def published(cls, group_size: int = 128) -> AwqSettings:
        """The published method alone."""
        return cls(group_size, clip=True, relative=False, compensate=False)


@torch.no_grad()
def search_scales(layer: nn.Module, seen: Seen, settings: AwqSettings) -> list[ScaleChoice]:
    """The best scales of each group, all on the layer's original weights; the layer is not changed.

    Losses are mean squared errors in f32 of the attention's output for q, k and v, of the MLP's for gate and up, and
    of the linear's own for the others. Raises ExportError when no ratio gives a finite loss.
    Source: mit-han-lab/llm-awq, auto_scale.
    """
    return [_search_group(layer, seen, group, settings) for group in scale_groups(layer)]


def _search_group(layer: nn.Module, seen: Seen, group: ScaleGroup, settings: AwqSettings) -> ScaleChoice:
    size = mean_size(seen, group.linears[0])
    loss = _loss(layer, seen, group, settings.group_size)
    best, least, losses = None, float("inf"), []
    for step in range(settings.ratio_steps):
        ratio = step / settings.ratio_steps
        scales = scales_for(size, ratio)
        losses.append(float(loss(scales)))
        if losses[-1] < least:
            least, best = losses[-1], (ratio, scales)
    if best is None:
        raise ExportError(
            f"{', '.join(group.linears)}: no scale gives a finite error",
            hint="weights or calibration inputs are not finite",
        )
    return ScaleChoice(group.previous, group.linears, best[1], best[0], tuple(losses))


def mean_size(seen: Seen, linear: str) -> Tensor:
    """The mean of |x| for each input channel over all tokens, f32 [K]."""
    total = torch.stack([chunk.abs().sum(0, dtype=torch.float64) for chunk, _ in seen.chunks(linear)]).sum(0)
    return (total / seen.tokens).float()


def scales_for(size: Tensor, ratio: float) -> Tensor:
    """Scales f32 [K] of a ratio: size^ratio, at least 1e-4, divided by the geometric mean of the extremes."""
    scales = size.pow(ratio).clamp(min=MIN_SCALE)
    return scales / (scales.max() * scales.min()).sqrt()


def _loss(layer: nn.Module, seen: Seen, group: ScaleGroup, group_size: int) -> Loss:
    if len(group.linears) == 3:
        return _attention_loss(layer, seen, group, group_size)
    if len(group.linears) == 2:
        return _mlp_loss(layer, seen, group_size)
    return _linear_loss(layer, seen, group.linears[0], group_size)


def _rounded(layer: nn.Module, linear: str, scales: Tensor, group_size: int) -> Tensor:
    """The weight f32 that is left of ``linear`` when its scaled columns are quantised."""
    weight = layer.get_submodule(linear).weight
    assert isinstance(weight, Tensor)
    return fake_quantize(weight.float() * scales, group_size).div_(scales)


def _attention_loss(layer: nn.Module, seen: Seen, group: ScaleGroup, group_size: int) -> Loss:
    inputs = list(zip(seen.inputs[group.linears[0]], seen.batches, strict=True))
    wanted = [run_attention(layer, normed, batch, {}) for normed, batch in inputs]

    def loss(scales: Tensor) -> Tensor:
        moved = {
            f"{name.removeprefix('self_attn.')}.weight": _rounded(layer, name, scales, group_size)
            for name in group.linears
        }
        errors = [
            _squares(run_attention(layer, normed, batch, moved) - right, weights)
            for (normed, batch), right, weights in zip(inputs, wanted, seen.weights, strict=True)
        ]
        return torch.stack(errors).sum() / (seen.tokens * wanted[0].shape[-1])

    return loss


def _mlp_loss(layer: nn.Module, seen: Seen, group_size: int) -> Loss:
    mlp = layer.get_submodule("mlp")
    down = mlp.down_proj.weight.float()
    gate_bias, up_bias = (None if item.bias is None else item.bias.float() for item in (mlp.gate_proj, mlp.up_proj))

    def loss(scales: Tensor) -> Tensor:
        gate, up = (_rounded(layer, name, scales, group_size) for name in ("mlp.gate_proj", "mlp.up_proj"))
        errors = []
        # what the original weights make between is what down_proj saw; its bias falls out of the difference
        for (x, weights), (between, _) in zip(seen.chunks("mlp.gate_proj"), seen.chunks("mlp.down_proj"), strict=True):
            moved = mlp.act_fn(functional.linear(x, gate, gate_bias)).mul_(functional.linear(x, up, up_bias))
            errors.append(_squares(functional.linear(moved.sub_(between), down), weights))
        return torch.stack(errors).sum() / (seen.tokens * len(down))

    return loss


def _linear_loss(layer: nn.Module, seen: Seen, linear: str, group_size: int) -> Loss:
    weight = layer.get_submodule(linear).weight
    assert isinstance(weight, Tensor)

    def loss(scales: Tensor) -> Tensor:
        change = _rounded(layer, linear, scales, group_size).sub_(weight.float())
        errors = [_squares(functional.linear(x, change), weights) for x, weights in seen.chunks(linear)]
        return torch.stack(errors).sum() / (seen.tokens * len(change))

    return loss


def _squares(errors: Tensor, weights: Tensor) -> Tensor:
    """The sum of squared ``errors`` [..., D], each token's times its weight."""
    return (errors.square().sum(-1) * weights).sum(dtype=torch.float64)
