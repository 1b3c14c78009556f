"""A decoder on int4 weights in torch: the reference for what the engines compute.

Weights are dequantised for each use, so results equal those of a float decoder whose weights are
``IntWeight.dequantize()``.
"""

from __future__ import annotations

import copy
import logging
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from kernels import packing
from kernels.packing import IntWeight

GROUP_SIZES = (128, 64, 32)
_logger = logging.getLogger(__name__)


class Int4Linear(nn.Module):
    """y = x · Wᵀ + b with W ≈ (q - z) · s in groups along the inputs; ``weight`` gives the matrix that is used."""

    q: Tensor
    zeros: Tensor
    scales: Tensor

    def __init__(self, weight: IntWeight, bias: Tensor | None) -> None:
        super().__init__()
        self.group_size = weight.group_size
        self.out_features, self.in_features = weight.shape
        self.register_buffer("q", torch.from_numpy(weight.q))
        self.register_buffer("zeros", torch.from_numpy(weight.zeros))
        # f16 bits survive a cast of the whole model only as integers
        self.register_buffer("scales", torch.from_numpy(weight.scales.view(np.int16).copy()))
        self.bias = bias

    @property
    def weight(self) -> Tensor:
        """Dequantised f32 [out, in]."""
        grouped = self.q.view(self.out_features, -1, self.group_size).float()
        scales = self.scales.view(torch.float16).float()
        return ((grouped - self.zeros[..., None].float()) * scales[..., None]).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight.to(x.dtype), self.bias)


def quantize_nearest(weight: Tensor, group_size: int) -> IntWeight:
    """Round to nearest: int4, asymmetric, groups along the inputs; the same integers as the exporter's.

    ``weight`` [N, K]. The range of a group contains 0; the scale is rounded to f16 before the integers are.
    """
    return packing.quantize_nearest(weight.detach().float().cpu().numpy(), group_size)


def group_size_for(in_features: int, wanted: int) -> int | None:
    """The largest group size up to ``wanted`` that divides ``in_features``; None when none does."""
    return next((size for size in GROUP_SIZES if size <= wanted and in_features % size == 0), None)


def quantized_decoder(llm: nn.Module, group_size: int = 128) -> nn.Module:
    """A copy of a causal language model whose linear layers and head are int4; embeddings, norms and biases are shared.

    Layer by layer: at no time is there a second full copy. A layer whose inputs no group size divides stays as it is.
    """
    twin = _shallow_copy(llm)
    for name, module in llm.named_modules():
        if isinstance(module, nn.Linear):
            size = group_size_for(module.in_features, group_size)
            if size is None:
                _logger.warning("%s keeps full weights: no group size divides its %d inputs", name, module.in_features)
                continue
            parent, _, leaf = name.rpartition(".")
            replacement = Int4Linear(quantize_nearest(module.weight, size), module.bias)
            setattr(twin.get_submodule(parent), leaf, replacement)
    _logger.info("int4 weights made by round to nearest, group size %d", group_size)
    return twin


def _shallow_copy(module: nn.Module) -> Any:
    """The same tree of modules with the same parameters, whose children can be replaced without touching the
    original.
    """
    twin = copy.copy(module)
    twin._parameters = dict(module._parameters)
    twin._buffers = dict(module._buffers)
    twin._modules = {name: None if child is None else _shallow_copy(child) for name, child in module._modules.items()}
    return twin
