"""The project's quantiser in torch, for searching on any device; the integers themselves come from kernels.packing."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels import packing
from kernels.packing import IntWeight

WHOLE_ROW = -1
MIN_RANGE = 1e-5
BLOCK_ELEMENTS = 1 << 20  # of a weight worked on at once: temporaries stay small, and in the cache of a CPU


def group_size_for(in_features: int, group_size: int) -> int:
    """``group_size``, or ``in_features`` for -1 (the whole row). Raises ValueError when it does not divide the row."""
    if group_size == WHOLE_ROW:
        return in_features
    if group_size < 1 or in_features % group_size:
        raise ValueError(f"groups of {group_size} do not divide {in_features} inputs")
    return group_size


def fake_quantize(weight: Tensor, group_size: int, bits: int = 4) -> Tensor:
    """Weight [N, K] of any float dtype and device -> the f32 [N, K] that its integers stand for.

    On CPU bit-equal to ``kernels.packing.quantize_nearest(weight, group_size, bits).dequantize()``: the range of a
    group contains 0, the scale is rounded to f16 before the integers are rounded, half to even. Not finite where the
    weight is not finite or a group spans more than f16 scales hold: whoever compares losses sees it. ``group_size`` -1
    is the whole row.
    Source: mit-han-lab/llm-awq, whose formula does not force 0 into the range and so saturates groups of one sign.
    """
    size = group_size_for(weight.shape[1], group_size)
    result = torch.empty(weight.shape, dtype=torch.float32, device=weight.device)
    rows = max(1, BLOCK_ELEMENTS // weight.shape[1])
    for start in range(0, len(weight), rows):
        block = weight[start : start + rows].float()
        result[start : start + rows] = _fake_rows(block, size, 2**bits - 1)
    return result


def _fake_rows(weight: Tensor, group_size: int, top: int) -> Tensor:
    grouped = weight.view(len(weight), -1, group_size)
    low = grouped.amin(2, keepdim=True).clamp_(max=0)
    high = grouped.amax(2, keepdim=True).clamp_(min=0)
    scales = ((high - low).clamp_(min=MIN_RANGE) / top).half().float()
    zeros = (-low / scales).round_().clamp_(0, top)
    levels = (grouped / scales).round_().add_(zeros).clamp_(0, top)
    return levels.sub_(zeros).mul_(scales).view_as(weight)


def integer_weight(weight: Tensor, group_size: int) -> IntWeight:
    """The four-bit integers of a weight [N, K], rounded to nearest. Raises ValueError as ``quantize_nearest`` does."""
    size = group_size_for(weight.shape[1], group_size)
    return packing.quantize_nearest(weight.detach().float().cpu().numpy(), size)
