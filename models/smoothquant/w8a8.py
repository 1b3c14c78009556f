"""Towers in int8 by int8: weights by output channel, activations by token (or with one fixed scale), sums in int32.

A reference for engines and graphs, not fast: what they compute, written plainly and exactly.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor, nn

from models.smoothquant.smooth import check_fits, smooth_layer
from models.vision_scales import FLOOR, LEVELS, LINEARS, NORM_OF, ActivationScales, quantize_rows, weight_scales
from models.vision_tower import VisionTower
from runtime.errors import ExportError

# Sums of this many products of int8 stay below 2^24 and are exact in f32, whatever their order.
_EXACT_IN_F32 = 1024
MAX_IN_FEATURES = (2**31 - 1) // (128 * 127)  # more could leave int32


class W8A8Linear(nn.Module):
    """y = (x_q · W_qᵀ) · s_x · s_w + b with int8 x_q and W_q, the product summed exactly in int32.

    ``weight_q`` int8 [N, K] and ``weight_scale`` f32 [N]: symmetric by output channel, |w| / 127. Without
    ``input_scale`` each token has its own scale, max|x| / 127 (a token of zeros gives the bias); with it one scale
    serves all and values beyond it saturate, as QuantizeLinear of ONNX does. Any K up to ``MAX_IN_FEATURES``; takes
    [..., K] in any float dtype, computes in f32, returns the input's dtype.
    """

    weight_q: Tensor
    weight_scale: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear, input_scale: np.float32 | float | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = linear.weight.shape
        if self.in_features > MAX_IN_FEATURES:
            raise ExportError(f"{self.in_features} inputs overflow int32 sums, at most {MAX_IN_FEATURES} are possible")
        weight = linear.weight.detach().float().cpu().numpy()
        scales = weight_scales(weight)
        device = linear.weight.device
        self.register_buffer("weight_q", torch.from_numpy(quantize_rows(weight, scales)).to(device))
        self.register_buffer("weight_scale", torch.from_numpy(scales).to(device))
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().float())
        self.input_scale = None if input_scale is None else float(input_scale)

    def forward(self, x: Tensor) -> Tensor:
        quantised, scale = self._quantize(x.float())
        sums = _integer_product(quantised, self.weight_q)
        y = sums.to(torch.float32) * (scale * self.weight_scale)
        return (y if self.bias is None else y + self.bias).to(x.dtype)

    def _quantize(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """int8 values (as f32) and the scales that give x back."""
        if self.input_scale is not None:
            scale = x.new_tensor(self.input_scale)
            return torch.clamp(torch.round(x / scale), -128, 127), scale
        largest = x.abs().amax(-1, keepdim=True)
        # The published kernel divides by zero for a token of zeros.
        scale = largest.clamp(min=FLOOR) / LEVELS
        return torch.clamp(torch.round(x / scale), -LEVELS, LEVELS), scale


def _integer_product(x: Tensor, weight: Tensor) -> Tensor:
    """x [..., K] · weight [N, K]ᵀ for int8 values, int32, in blocks of K (the last one may be shorter)."""
    total = torch.zeros(*x.shape[:-1], weight.shape[0], dtype=torch.int32, device=x.device)
    for begin in range(0, x.shape[-1], _EXACT_IN_F32):
        end = begin + _EXACT_IN_F32
        total += torch.matmul(x[..., begin:end], weight[:, begin:end].float().T).to(torch.int32)
    return total


def w8a8_layer(
    layer: nn.Module,
    index: int,
    scales: ActivationScales | None,
    *,
    alpha: float | None = None,
    smooth: bool = True,
    static: bool = False,
) -> nn.Module:
    """A copy of one encoder layer whose six linear layers are ``W8A8Linear``; see ``w8a8_tower``."""
    twin = copy.deepcopy(layer).float()
    factors = smooth_layer(twin, index, scales, alpha) if scales is not None and smooth else {}
    for linear in LINEARS:
        fixed = None
        if static:
            assert scales is not None, "static activation scales come from a calibration"
            fixed = scales.input_scale(index, linear, factors.get(NORM_OF.get(linear, "")))
        parent, _, leaf = linear.rpartition(".")
        setattr(twin.get_submodule(parent), leaf, W8A8Linear(twin.get_submodule(linear), fixed))
    return twin


def w8a8_tower(
    tower: VisionTower,
    scales: ActivationScales | None = None,
    *,
    alpha: float | None = None,
    smooth: bool = True,
    static: bool = False,
) -> VisionTower:
    """A copy of a tower that computes its encoder in int8 by int8; embeddings, norms and attention stay in f32.

    Without ``scales``, or with ``smooth=False``, the weights are quantised as they stand. ``static`` takes the inputs'
    scales from ``scales`` instead of from each token. Only measured layers are changed, so without ``scales`` all are.
    Raises ExportError when the tower does not fit ``scales``; UsageError when it is not loaded.
    """
    if scales is not None:
        check_fits(tower, scales)
    twin = copy.deepcopy(tower).float()
    layers = twin.vision_tower.encoder.layers
    for index in range(len(layers) if scales is None else scales.layers):
        layers[index] = w8a8_layer(layers[index], index, scales, alpha=alpha, smooth=smooth, static=static)
    return twin.requires_grad_(False).eval()
