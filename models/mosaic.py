"""Tiles to maps and back: chessboards, space-to-depth and the S² mosaic, each one einops ``rearrange``.

Eager models and the traced graphs share these functions: sizes are read from shapes, so a grid is never a constant of
the traced example. Maps are channels-last [rows, cols, C] in the S² path and channels-first [B, C, H, W] for
chessboards, as published.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from runtime.errors import InputError


def split_chessboard(x: Tensor, num_split_h: int, num_split_w: int) -> Tensor:
    """[B, C, H, W] -> [num_split_h * num_split_w * B, C, H / num_split_h, W / num_split_w]; piece (i, j) of picture b
    is row ``(i * num_split_w + j) * B + b``. AssertionError when the sides do not divide.
    """
    height, width = x.shape[2:]
    assert height % num_split_h == 0 and width % num_split_w == 0, (
        f"a map of {height}x{width} cannot be split into {num_split_h}x{num_split_w} equal pieces"
    )
    return rearrange(x, "b c (i h) (j w) -> (i j b) c h w", i=num_split_h, j=num_split_w)


def merge_chessboard(x: Tensor, num_split_h: int, num_split_w: int) -> Tensor:
    """The exact inverse of ``split_chessboard``; [B, N, C] is read as [B, C, sqrt(N), sqrt(N)] first.

    AssertionError when the batch does not divide, ValueError when N is not a square.
    """
    if x.dim() == 3:
        side = math.isqrt(x.shape[1])
        if side * side != x.shape[1]:
            raise ValueError(f"{x.shape[1]} tokens are not a square grid, so they cannot be merged")
        x = rearrange(x, "b (h w) c -> b c h w", h=side)
    pieces = num_split_h * num_split_w
    assert x.shape[0] % pieces == 0, f"{x.shape[0]} pieces cannot be merged into {num_split_h}x{num_split_w}"
    return rearrange(x, "(i j b) c h w -> b c (i h) (j w)", i=num_split_h, j=num_split_w)


def fold_squares(x: Tensor, side: int) -> Tensor:
    """Space-to-depth: [B, g*g, C] -> [B, ceil(g / side)^2, side^2 * C], zero-padded at the bottom and on the right.

    Channels of a token are those of its square's patches, row by row.
    """
    grid = math.isqrt(x.shape[1])
    if grid * grid != x.shape[1]:
        raise ValueError(f"{x.shape[1]} patches are not a square grid")
    missing = -grid % side
    square = rearrange(x, "b (h w) c -> b h w c", h=grid)
    if missing:
        square = functional.pad(square, (0, 0, 0, missing, 0, missing))
    return rearrange(square, "b (r i) (q j) c -> b (r q) (i j c)", i=side, j=side)


def lay_tiles(tiles: Tensor, rows: int, cols: int) -> Tensor:
    """Features of row-major tiles [rows * cols, g*g, C] -> one map [rows * g, cols * g, C]."""
    grid = math.isqrt(tiles.shape[1])
    return rearrange(tiles, "(r c) (h w) d -> (r h) (c w) d", r=rows, c=cols, h=grid)


def cut_blocks(mosaic: Tensor, side: int) -> Tensor:
    """A map [R * side, C * side, D] -> blocks [R * C, side * side, D], row-major."""
    return rearrange(mosaic, "(r h) (c w) d -> (r c) (h w) d", h=side, w=side)


def flatten_mosaic(blocks: Tensor, rows: int, cols: int) -> Tensor:
    """Projected blocks [rows * cols, n*n, D] -> tokens [rows * cols * n*n, D], row-major over the whole mosaic."""
    side = math.isqrt(blocks.shape[1])
    return rearrange(blocks, "(r c) (h w) d -> (r h c w) d", r=rows, c=cols, h=side)


def resize_by_area(feature_map: Tensor, area_h: Tensor, area_w: Tensor) -> Tensor:
    """[h, w, C] -> [H, W, C] with averaging matrices area_h [H, h], area_w [W, w]; computed in float32 as published."""
    averaged = torch.einsum("ph,hwc->pwc", area_h.float(), feature_map.float())
    return torch.einsum("qw,pwc->pqc", area_w.float(), averaged).to(feature_map.dtype)


class MosaicProjector(nn.Module):
    """Features of one picture's tiles to its image tokens; what the second graph of a bundle is traced from.

    ``forward(features [T, P, C], area_h_0, area_w_0, area_h_1, ...)`` with one pair per scale, ascending: ``area_h_i``
    [H, h_i] and ``area_w_i`` [W, w_i] in patches (``runtime.tiling.s2_matrices``). Their shapes are the grid: scale i
    has ``h_i / g`` rows of ``w_i / g`` tiles and the output ``H / g`` x ``W / g`` blocks, where g is
    ``patches_per_side``. For a plain block hand in its one tile's features once per scale, with identity matrices.
    Returns [N, D], row-major over the whole mosaic, the projector applied block by block. Without matrices the
    features are projected tile by tile.
    """

    def __init__(self, projector: nn.Module, patches_per_side: int) -> None:
        super().__init__()
        self.projector = projector
        self.patches_per_side = patches_per_side

    def forward(self, features: Tensor, *matrices: Tensor) -> Tensor:
        if not matrices:
            projected: Tensor = self.projector(features)
            return projected.flatten(0, 1)
        return self._project(merge_scales(features, matrices, self.patches_per_side))

    def _project(self, mosaic: Tensor) -> Tensor:
        side = self.patches_per_side
        blocks = self.projector(cut_blocks(mosaic, side))
        return flatten_mosaic(blocks, mosaic.shape[0] // side, mosaic.shape[1] // side)


def merge_scales(features: Tensor, matrices: Sequence[Tensor], side: int) -> Tensor:
    """Tiles of all scales [T, side*side, C] -> one map [H, W, scales * C], channels in ascending order of the scales.

    ``matrices``: area_h, area_w of each scale in turn. Outside a trace, InputError when the tiles are not as many as
    the matrices' shapes ask for.
    """
    maps, taken = [], 0
    for area_h, area_w in zip(matrices[0::2], matrices[1::2], strict=True):
        rows, cols = area_h.shape[1] // side, area_w.shape[1] // side
        tiles = features[taken : taken + rows * cols]
        taken = taken + rows * cols
        maps.append(resize_by_area(lay_tiles(tiles, rows, cols), area_h, area_w))
    if not torch.compiler.is_compiling() and taken != features.shape[0]:
        raise InputError(f"the matrices ask for {taken} tiles, got {features.shape[0]}")
    return torch.cat(maps, dim=-1)


def pool_grid(frames: Tensor, size: Sequence[int]) -> Tensor:
    """Means over windows (t, h, w) of frames [T, N, D] on a square grid: [T / t, N / (h * w), D].

    As published one dimension after the other. Raises InputError when a size does not divide its dimension.
    """
    side = math.isqrt(frames.shape[1])
    pooled = rearrange(frames, "t (h w) d -> t h w d", h=side)
    for dim, window in enumerate(size):
        if pooled.shape[dim] % window:
            raise InputError(
                f"pool size {tuple(size)} does not divide {tuple(pooled.shape[:3])} (frames, rows, columns)"
            )
        pooled = pooled.unflatten(dim, (-1, window)).mean(dim + 1)
    return pooled.flatten(1, 2)
