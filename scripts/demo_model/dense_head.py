"""Dense targets of every patch, learned by a linear head that is dropped at export.

Without them the tower does not find shapes or positions within this budget: cross-entropy averaged over mostly
empty patches leaves shape at chance, so shape, size and centre count figure patches only; the 2-pixel occupancy
gives sub-patch outlines.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runtime.sources.scene_render import masks
from runtime.sources.scenes import COLORS, SHAPES, Scene

CELLS = 8  # occupancy cells per patch side, 2 pixels each
TOKEN_SCALE = 0.2  # keeps the head's steps small: AdamW moves an output by rate x width x this
COVERED = 0.12  # of a patch, to count as a figure's
_PARTS = (len(COLORS) + 1, len(SHAPES), 1, CELLS * CELLS, 2)  # colour or none, shape, large, occupancy, centre


@dataclass(frozen=True)
class PatchTargets:
    """Targets of P patches; numpy while built per picture, torch once batched."""

    color: np.ndarray | Tensor  # int64 [P], len(COLORS) = none
    shape: np.ndarray | Tensor  # int64 [P]
    large: np.ndarray | Tensor  # f32 [P]
    center: np.ndarray | Tensor  # f32 [P, 2] in -1..1 of the picture
    occupancy: np.ndarray | Tensor  # f32 [P, 64]
    figure: np.ndarray | Tensor  # bool [P]: a figure covers it


def patch_targets(scene: Scene, rows: int, columns: int) -> PatchTargets:
    """Targets of a mosaic of rows x columns patches, row-major."""
    patches = rows * columns
    if not scene.figures:
        zero = np.zeros(patches, np.int64)
        return PatchTargets(
            zero + len(COLORS), zero, zero.astype(np.float32), np.zeros((patches, 2), np.float32),
            np.zeros((patches, CELLS * CELLS), np.float32), np.zeros(patches, bool),
        )  # fmt: skip
    cover = masks(scene, columns * CELLS, rows * CELLS)
    cells = cover.reshape(-1, rows, CELLS, columns, CELLS).transpose(0, 1, 3, 2, 4).reshape(-1, patches, CELLS * CELLS)
    mean = cells.mean(-1)
    owner = mean.argmax(0)
    figure = mean.max(0) > COVERED
    colors = np.array([COLORS.index(f.color) for f in scene.figures])
    shapes = np.array([SHAPES.index(f.shape) for f in scene.figures])
    large = np.array([f.large for f in scene.figures], np.float32)
    centers = np.array([scene.fraction(f) for f in scene.figures], np.float32) * 2 - 1
    return PatchTargets(
        np.where(figure, colors[owner], len(COLORS)), shapes[owner], large[owner], centers[owner], cells.max(0), figure
    )


def batch_targets(pictures: list[PatchTargets]) -> PatchTargets:
    """All patches of a batch, as tensors."""

    def joined(name: str) -> Tensor:
        return torch.from_numpy(np.concatenate([getattr(picture, name) for picture in pictures]))

    return PatchTargets(*(joined(name) for name in PatchTargets.__dataclass_fields__))


class DenseHead(nn.Module):
    """One linear layer over patch features [P, C]; with `token_width`, another over image tokens [N, D] for centres."""

    def __init__(self, width: int, token_width: int | None = None) -> None:
        super().__init__()
        self.linear = nn.Linear(width, sum(_PARTS))
        self.token = nn.Linear(token_width, 2) if token_width else None
        if self.token is not None:
            nn.init.zeros_(self.token.weight)  # it may begin late: its first gradients must not upset the decoder

    def forward(self, features: Tensor) -> tuple[Tensor, ...]:
        return self.linear(features).float().split(_PARTS, -1)


def token_center_loss(head: DenseHead, tokens: Tensor, targets: PatchTargets) -> Tensor:
    """Mean L1 distance (x plus y, in -1..1) of the centres read off image tokens [N, D].

    A fine tile does not know where it lies: only the projector can join its offsets with the coarse tile's cell, which
    a linear readout of the patch features cannot. A token's figure is the one that covers most of its four patches.
    """
    assert head.token is not None
    square = targets.figure.view(len(tokens), -1)
    owner = targets.occupancy.view(*square.shape, -1).mean(-1).argmax(1)
    center = targets.center.view(*square.shape, 2)[torch.arange(len(tokens)), owner]
    mine = square.any(1).float()
    normed = F.layer_norm(tokens.float(), tokens.shape[-1:]) * TOKEN_SCALE
    off = (head.token(normed).float() - center).abs().sum(-1)
    return (off * mine).sum() / mine.sum().clamp(min=1)


def dense_loss(outputs: tuple[Tensor, ...], targets: PatchTargets) -> tuple[Tensor, dict[str, Tensor]]:
    """(loss, {"shape", "color": accuracy on figure patches, "center": mean L1})."""
    color, shape, large, occupancy, center = outputs
    mine = targets.figure.float()
    count = mine.sum().clamp(min=1)
    color_loss = F.cross_entropy(color, targets.color, reduction="none")
    shape_loss = F.cross_entropy(shape, targets.shape, reduction="none")
    large_loss = F.binary_cross_entropy_with_logits(large[:, 0], targets.large, reduction="none")
    weight = 0.05 + 0.95 * mine[:, None]
    outline = F.binary_cross_entropy_with_logits(occupancy, targets.occupancy, reduction="none") * weight
    center_loss = ((center - targets.center).abs().sum(-1) * mine).sum() / count
    loss = (
        0.5 * (color_loss * mine).sum() / count
        + (color_loss * (1 - mine)).mean()
        + (shape_loss * mine).sum() / count
        + 0.3 * (large_loss * mine).sum() / count
        + 2 * outline.sum() / (weight.sum() * CELLS * CELLS)
        + center_loss
    )
    right_shape = ((shape.argmax(-1) == targets.shape) * mine).sum() / count
    right_color = ((color.argmax(-1) == targets.color) * mine).sum() / count
    return loss, {"shape": right_shape.detach(), "color": right_color.detach(), "center": center_loss.detach()}
