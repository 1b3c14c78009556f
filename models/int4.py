"""A decoder on integer weights in torch: the reference for what the engines compute.

Weights are dequantised for each use, so results equal those of a float decoder whose weights are
``IntWeight.dequantize()``. On CUDA tensors in f16 or bf16 our kernels compute with the integers themselves
(`models.device_products`).
"""

from __future__ import annotations

import copy
import itertools
import logging
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from kernels import packing
from kernels.packing import IntWeight
from kernels.packing.nibbles import pack_bytes
from models.device_products import DeviceProducts, PackedLinear, products_for

GROUP_SIZES = (128, 64, 32)
FULL_BITS = 16
_BLOCK_VALUES = 1 << 24  # of a matrix that are dequantised, or quantised, at a time
_logger = logging.getLogger(__name__)


class Int4Linear(nn.Module):
    """y = x · Wᵀ + b with W ≈ (q - z) · s in groups along the inputs; ``weight`` gives the matrix that is used.

    The integers lie in buffers: two a byte with four bits, one with eight (an LM head). A cast of the model changes
    activations and the bias alone.
    """

    q: Tensor
    zeros: Tensor
    scales: Tensor

    def __init__(self, weight: IntWeight | Iterable[IntWeight], bias: Tensor | None) -> None:
        """``weight``: the integers, or blocks of their rows in order; ``bias`` [out] is kept as it is."""
        super().__init__()
        q, zeros, scales = [], [], []
        for rows in [weight] if isinstance(weight, IntWeight) else weight:
            self.group_size, self.bits, self.in_features = rows.group_size, rows.bits, rows.shape[1]
            q.append(torch.from_numpy(pack_bytes(rows.q) if rows.bits == 4 else np.array(rows.q)))
            zeros.append(torch.from_numpy(np.array(rows.zeros)))
            # f16 bits survive a cast of the whole model only as integers
            scales.append(torch.from_numpy(np.array(rows.scales).view(np.int16)))
        for name, blocks in (("q", q), ("zeros", zeros), ("scales", scales)):
            self.register_buffer(name, blocks[0] if len(blocks) == 1 else torch.cat(blocks))
        self.out_features = len(self.q)
        self.bias = bias
        self._packed: tuple[tuple[object, ...], PackedLinear | None] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the form for the kernels, which has addresses in it."""
        return {**self.__dict__, "_packed": None}

    @classmethod
    def nearest(cls, linear: nn.Linear, group_size: int, bits: int = 4) -> Int4Linear:
        """A linear layer's weights rounded to nearest, block of rows by block; the bias is shared."""
        rows = _rows_at_a_time(linear.in_features)
        blocks = (quantize_nearest(part, group_size, bits) for part in linear.weight.split(rows))
        return cls(blocks, linear.bias)

    @property
    def weight(self) -> Tensor:
        """Dequantised f32 [out, in]."""
        return torch.cat(list(self._blocks()))

    def integers(self) -> IntWeight:
        """The integers in canonical form, on the CPU."""
        q = self._unpacked(self.q).cpu().numpy()
        scales = self.scales.cpu().numpy().view(np.float16)
        return IntWeight(q, self.zeros.cpu().numpy(), scales, self.group_size, self.bits)

    def forward(self, x: Tensor) -> Tensor:
        products = products_for(x)
        if products is not None and products.takes(x, self.group_size):
            packed = self._for_kernels(products, x.device)
            if packed is not None:
                return products.linear(x, packed)
        rows = _rows_at_a_time(self.in_features)
        biases = itertools.repeat(None) if self.bias is None else self.bias.split(rows)
        parts = [functional.linear(x, block.to(x.dtype), b) for block, b in zip(self._blocks(), biases, strict=False)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    def _for_kernels(self, products: DeviceProducts, device: torch.device) -> PackedLinear | None:
        """Packed on the first use, and again when the tensors were replaced."""
        bias = self.bias
        now = (device, self.q.data_ptr(), None if bias is None else (bias.data_ptr(), bias.dtype, bias._version))
        if self._packed is None or self._packed[0] != now:
            self._packed = now, products.pack(self.integers(), bias, device)
        return self._packed[1]

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bits={self.bits}, group_size={self.group_size}"

    def _blocks(self) -> Iterator[Tensor]:
        rows = _rows_at_a_time(self.in_features)
        for q, zeros, scales in zip(self.q.split(rows), self.zeros.split(rows), self.scales.split(rows), strict=True):
            grouped = self._unpacked(q).view(len(q), -1, self.group_size).float()
            grouped -= zeros[..., None]
            grouped *= scales.view(torch.float16).float()[..., None]
            yield grouped.flatten(1)

    def _unpacked(self, q: Tensor) -> Tensor:
        if self.bits == 8:
            return q
        return torch.stack([q & 15, q >> 4], dim=-1).flatten(1)[:, : self.in_features]


def quantize_nearest(weight: Tensor, group_size: int, bits: int = 4) -> IntWeight:
    """Round to nearest: asymmetric, groups along the inputs; the same integers as the exporter's.

    ``weight`` [N, K]. The range of a group contains 0; the scale is rounded to f16 before the integers are.
    """
    return packing.quantize_nearest(weight.detach().float().cpu().numpy(), group_size, bits)


def group_size_for(in_features: int, wanted: int) -> int | None:
    """The largest group size up to ``wanted`` that divides ``in_features``; None when none does."""
    return next((size for size in GROUP_SIZES if size <= wanted and in_features % size == 0), None)


def quantized_decoder(llm: nn.Module, group_size: int = 128, head_bits: int = 4) -> nn.Module:
    """A causal language model on integers beside ``llm``: linears of its layers and its head; the rest is shared.

    Linears that hold integers already are shared too; the others are rounded to nearest, layer by layer: at no time is
    there a second full copy. ``head_bits`` 4, 8, or 16 for a head that stays as it is. A linear whose inputs no group
    size divides stays as it is, with a warning.
    """
    made: dict[str, nn.Module] = {}
    layers: Any = llm.get_submodule("model.layers")
    for index, layer in enumerate(layers):
        before = len(made)
        for name, module in layer.named_modules():
            if isinstance(module, nn.Linear):
                _round(f"model.layers.{index}.{name}", module, group_size, 4, made)
        if len(made) > before:
            _logger.info("int4 weights of layer %d of %d made by round to nearest", index + 1, len(layers))
    head = llm.get_submodule("lm_head")
    if isinstance(head, nn.Linear) and head_bits < FULL_BITS:
        _round("lm_head", head, group_size, head_bits, made)
        _logger.info("the head's int%d weights made by round to nearest", head_bits)
    return _with_replaced(llm, made)


def _round(name: str, linear: nn.Linear, group_size: int, bits: int, made: dict[str, nn.Module]) -> None:
    size = group_size_for(linear.in_features, group_size)
    if size is None:
        _logger.warning("%s keeps full weights: no group size divides its %d inputs", name, linear.in_features)
    else:
        made[name] = Int4Linear.nearest(linear, size, bits)


def _with_replaced(module: nn.Module, replacements: dict[str, nn.Module]) -> Any:
    """``module`` with other modules under the given names. What leads to them is copied, everything else is shared."""
    twin = copy.copy(module)
    twin._modules = dict(module._modules)
    below: dict[str, dict[str, nn.Module]] = {}
    for name, replacement in replacements.items():
        child, _, rest = name.partition(".")
        if rest:
            below.setdefault(child, {})[rest] = replacement
        else:
            twin._modules[child] = replacement
    for child, inside in below.items():
        twin._modules[child] = _with_replaced(module.get_submodule(child), inside)
    return twin


def _rows_at_a_time(in_features: int) -> int:
    return max(1, _BLOCK_VALUES // in_features)
