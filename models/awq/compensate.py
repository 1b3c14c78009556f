"""Rounding that makes up for itself: the error of each column is taken over by the columns after it.

Not part of the published AWQ; it comes after scales and clips, on what they leave.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from models.awq.layers import Seen
from models.awq.quantizer import MIN_RANGE, group_size_for

TOP = 15
DAMPING = 0.01  # of the mean diagonal, against directions that the calibration inputs hardly have
BLOCK_COLUMNS = 2048  # columns that take over each other's errors: bounds memory and time of wide layers
SEGMENT_COLUMNS = 128


def error_factors(seen: Seen, linear: str) -> list[Tensor]:
    """How errors of the inputs of ``linear`` are taken over: a factor [m, m] for each 2,048 of its inputs, in order."""
    width = seen.of(linear)[0].shape[1]
    factors = []
    for start in range(0, width, BLOCK_COLUMNS):
        size = min(BLOCK_COLUMNS, width - start)
        gram = seen.weights[0].new_zeros(size, size, dtype=torch.float64)
        for inputs, weights in seen.chunks(linear):
            block = inputs[:, start : start + size]
            gram += (block * weights[:, None]).T @ block
        factors.append(inverse_factor(gram))
    return factors


def inverse_factor(gram: Tensor) -> Tensor:
    """The upper U, f32 [m, m], of gram⁻¹ = UᵀU; gram f64 [m, m] = Σ xxᵀ is damped first, in place."""
    diagonal = gram.diagonal()
    diagonal += DAMPING * diagonal.mean() + torch.finfo(torch.float32).tiny
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram))
    return torch.linalg.cholesky(inverse, upper=True).float()


@torch.no_grad()
def compensated(weight: Tensor, factors: Sequence[Tensor], group_size: int) -> Tensor:
    """A weight [N, K] moved to four-bit levels, f32 [N, K], which ``quantize_nearest`` gives back bit for bit.

    Columns are rounded in turn; those after a column, in its block, move to where the output changes least. The levels
    of a group come from its range when its first column is reached, and the elements at the two ends get the end
    levels, so that the result has the same range. ``factors``: ``error_factors`` of the inputs.
    Source: Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers" (2023).
    """
    group_size = group_size_for(weight.shape[1], group_size)
    rest = weight.detach().float().clone()
    levels = _Levels(rest[:, :group_size])
    begin = 0
    for factor in factors:
        end = begin + len(factor)
        start = begin
        while start < end:
            if start % group_size == 0:
                levels = _Levels(rest[:, start : start + group_size])
            stop = min(end, start + SEGMENT_COLUMNS, start - start % group_size + group_size)
            inner = factor[start - begin : stop - begin, start - begin :]
            errors = _round_segment(rest[:, start:stop], inner, levels, start % group_size)
            rest[:, stop:end] -= errors @ inner[:, stop - start :]
            start = stop
        begin = end
    return rest


def _round_segment(segment: Tensor, factor: Tensor, levels: _Levels, first: int) -> Tensor:
    """Round the columns of ``segment`` in place, the first of which is the group's ``first``; the errors [N, columns],
    in units of the factor's diagonal."""
    errors = torch.empty_like(segment)
    for j in range(segment.shape[1]):
        column = segment[:, j]
        rounded = levels.nearest(column, first + j)
        errors[:, j] = (column - rounded) / factor[j, j]
        segment[:, j + 1 :] -= errors[:, j, None] * factor[j, j + 1 : segment.shape[1]]
        segment[:, j] = rounded
    return errors


class _Levels:
    """The sixteen levels of one group in each row, and the places that hold its two ends (-1: none needed)."""

    def __init__(self, group: Tensor) -> None:
        (low, lowest), (high, highest) = group.min(1), group.max(1)
        low, high = low.clamp(max=0), high.clamp(min=0)
        wide = high - low >= MIN_RANGE
        self.scales = ((high - low).clamp(min=MIN_RANGE) / TOP).half().float()
        self.zeros = (-low / self.scales).round_().clamp_(0, TOP)
        # 0 is always in the range, so that a group of one sign has an end without an element
        self.lowest = torch.where(wide & (low < 0), lowest, -1)
        self.highest = torch.where(wide & (high > 0), highest, -1)

    def nearest(self, column: Tensor, place: int) -> Tensor:
        """The levels of a group's column [N] at ``place`` in the group."""
        level = (column / self.scales).round_().add_(self.zeros).clamp_(0, TOP)
        level = torch.where(self.highest == place, TOP, torch.where(self.lowest == place, 0, level))
        return level.sub_(self.zeros).mul_(self.scales)
