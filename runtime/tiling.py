"""Where the tiles of a picture lie: pure geometry, no pixels.

A picture is cut into square tiles that the vision tower takes. This file decides how many, from where and in which
order, and how many rows of ``image_embeds`` come out of them. The model classes, the exporter and the runtime all ask
here. Grids are ``(rows, cols)`` everywhere. Source: VILA's ``mm_utils`` (dynamic_preprocess, dynamic_s2_preprocess).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from runtime.errors import ConfigError, ImageError, InputError

MODES = ("resize", "crop", "pad", "dynamic", "dynamic_s2")
Grid = tuple[int, int]
Matrix = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class TilingSpec:
    """How the pictures of one model are cut; plain data, as it stands in a manifest.

    ``tile_px`` is the side of the tower's square input, ``patches_per_side`` how many patches lie along it,
    ``downsample`` the side of the patch square that the projector folds into one token (1, 2 or 3).
    ``scales_px`` (ascending, the first one equals ``tile_px``) and ``resize_output_to_scale_idx`` belong to
    ``dynamic_s2``, ``shortest_edge_px`` to ``crop`` (0 means ``tile_px``). ``class_tokens`` counts rows that a tile
    has besides its patches. ``tile_all`` tiles every picture of a request; without it a request with two or more
    pictures has none of them tiled. Raises ConfigError with the field's name for values that cannot be.
    """

    mode: str
    tile_px: int
    patches_per_side: int
    min_tiles: int = 1
    max_tiles: int = 12
    use_thumbnail: bool = True
    scales_px: tuple[int, ...] = ()
    resize_output_to_scale_idx: int = 0
    downsample: int = 1
    tile_all: bool = False
    video_frames: int = 8
    shortest_edge_px: int = 0
    class_tokens: int = 0

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ConfigError(f"tiling.mode is {self.mode!r}", hint="one of " + ", ".join(MODES))
        floors = {"tile_px": 1, "patches_per_side": 1, "min_tiles": 1, "max_tiles": self.min_tiles, "downsample": 1}
        floors |= {"video_frames": 1, "shortest_edge_px": 0, "class_tokens": 0}
        for name, floor in floors.items():
            if getattr(self, name) < floor:
                raise ConfigError(f"tiling.{name} is {getattr(self, name)}, the least is {floor}")
        object.__setattr__(self, "scales_px", tuple(self.scales_px))
        if self.mode == "dynamic_s2":
            self._check_scales()
        if self.mode == "crop" and 0 < self.shortest_edge_px < self.tile_px:
            raise ConfigError(f"tiling.shortest_edge_px is {self.shortest_edge_px}, below tile_px {self.tile_px}")

    def _check_scales(self) -> None:
        scales, count = self.scales_px, len(self.scales_px)
        ascending = all(a < b for a, b in itertools.pairwise(scales))
        if not scales or scales[0] != self.tile_px or not ascending or any(s % self.tile_px for s in scales):
            raise ConfigError(f"tiling.scales_px is {scales}: ascending multiples of tile_px {self.tile_px} are needed")
        if not -count <= self.resize_output_to_scale_idx < count:
            raise ConfigError(
                f"tiling.resize_output_to_scale_idx is {self.resize_output_to_scale_idx} for {count} scales"
            )
        if self.class_tokens:
            raise ConfigError("tiling.class_tokens must be 0 with dynamic_s2: a class token has no place in the mosaic")

    @property
    def tokens_per_block(self) -> int:
        """Rows of ``image_embeds`` that one block of ``patches_per_side`` squared patches becomes."""
        return (-(-self.patches_per_side // self.downsample)) ** 2 + self.class_tokens

    @property
    def scale_factors(self) -> tuple[int, ...]:
        """Tiles along one side for each scale."""
        return tuple(s // self.tile_px for s in self.scales_px)


@dataclass(frozen=True, slots=True)
class TileBox:
    """One tile: resize the whole picture to ``resize_h`` x ``resize_w`` px, crop ``tile_px`` squared at (top, left)."""

    resize_h: int
    resize_w: int
    top: int
    left: int


@dataclass(frozen=True, slots=True)
class TileLayout:
    """The tiles of one picture in the order in which the tower takes them.

    ``grid`` is the (rows, cols) of the finest tiles, ``out_grid`` that of the blocks that the projector puts out
    (they differ for dynamic S² when the output is resized to a coarser scale). ``num_image_tokens`` counts rows of
    ``image_embeds``; line breaks and other text around a picture are not in it. ``pad_px`` > 0: the picture is first
    centred on a square of that side, ``pad_top`` and ``pad_left`` px from its corner. ``multi_scale`` is False for
    the plain 1x1 block of dynamic S².
    """

    grid: Grid
    num_tiles: int
    num_image_tokens: int
    tiles: tuple[TileBox, ...]
    out_grid: Grid = (1, 1)
    multi_scale: bool = False
    pad_px: int = 0
    pad_top: int = 0
    pad_left: int = 0


def candidate_grids(min_num: int, max_num: int) -> list[Grid]:
    """Every (rows, cols) with ``min_num <= rows * cols <= max_num``, by rising area; empty when there is none.

    The published code sorts a *set* by area alone, so grids of equal area come in the order of CPython's set, and
    that order decides exact ties (it cannot decide any with the limits of released models, 1..12 and 9..12). The same
    expression is used here: hashes of integer tuples are not randomised, and a test pins the order for every
    interpreter we support.
    """
    sides = ((i, j) for n in range(min_num, max_num + 1) for i in range(1, n + 1) for j in range(1, n + 1))
    ratios = {ratio for ratio in sides if min_num <= ratio[0] * ratio[1] <= max_num}
    return [(rows, cols) for cols, rows in sorted(ratios, key=lambda ratio: ratio[0] * ratio[1])]


def find_closest_aspect_ratio(height: int, width: int, tile_px: int, grids: Sequence[Grid]) -> Grid:
    """The grid whose shape is nearest to that of a ``height`` x ``width`` picture; (1, 1) when ``grids`` is empty.

    Nearest means least ``|width / height - cols / rows|``. On an exact tie the later grid wins when the picture has
    more than half of that grid's pixels.
    """
    best, best_difference = (1, 1), float("inf")
    for rows, cols in grids:
        difference = abs(width / height - cols / rows)
        wins_tie = difference == best_difference and width * height > 0.5 * tile_px * tile_px * cols * rows
        if difference < best_difference or wins_tie:
            best, best_difference = (rows, cols), difference
    return best


def layout_for(height: int, width: int, spec: TilingSpec) -> TileLayout:
    """The tiles of one picture of ``height`` x ``width`` px. Raises ImageError for a side below 1."""
    if height < 1 or width < 1:
        raise ImageError(f"picture of {width}x{height} px: each side must be at least 1")
    if spec.mode == "dynamic":
        return _dynamic(height, width, spec)
    if spec.mode == "dynamic_s2":
        return _dynamic_s2(height, width, spec)
    if spec.mode == "crop":
        return _crop(height, width, spec)
    return plain_layout(height, width, spec)


def plain_layout(height: int, width: int, spec: TilingSpec) -> TileLayout:
    """The picture as one tile: squeezed to the square, padded to it (``pad``), or cut from its centre (``crop``)."""
    if spec.mode == "crop":
        return _crop(height, width, spec)
    side = max(height, width) if spec.mode == "pad" and height != width else 0
    return TileLayout(
        grid=(1, 1),
        num_tiles=1,
        num_image_tokens=spec.tokens_per_block,
        tiles=(TileBox(spec.tile_px, spec.tile_px, 0, 0),),
        pad_px=side,
        pad_top=(side - height) // 2 if side else 0,
        pad_left=(side - width) // 2 if side else 0,
    )


def layouts_for(sizes: Sequence[tuple[int, int]], spec: TilingSpec) -> list[TileLayout]:
    """The layouts of all pictures of one request, ``sizes`` as (height, width).

    As the published models do it, one picture is tiled and two or more are not, unless ``spec.tile_all``.
    """
    if len(sizes) > 1 and not spec.tile_all:
        return [plain_layout(height, width, spec) for height, width in sizes]
    return [layout_for(height, width, spec) for height, width in sizes]


def area_matrix(n_out: int, n_in: int) -> Matrix:
    """Averaging matrix f32 [n_out, n_in]; two of them equal torch's ``interpolate(mode="area")`` of a map.

    Row i is the mean of the inputs ``floor(i * n_in / n_out)`` up to ``ceil((i + 1) * n_in / n_out) - 1``.
    """
    if n_out < 1 or n_in < 1:
        raise InputError(f"area_matrix({n_out}, {n_in}): both sides must be at least 1")
    matrix = np.zeros((n_out, n_in), np.float32)
    for i in range(n_out):
        start, stop = i * n_in // n_out, -(-(i + 1) * n_in // n_out)
        matrix[i, start:stop] = np.float32(1.0) / np.float32(stop - start)
    return matrix


def s2_matrices(layout: TileLayout, spec: TilingSpec) -> list[tuple[Matrix, Matrix]]:
    """For each scale the pair (A_h f32 [H_out, h_i], A_w f32 [W_out, w_i]) that brings its map to the output's size.

    Sizes are in patches. For a plain block every matrix is the identity of ``patches_per_side``; [] without scales.
    """
    side = spec.patches_per_side
    if not layout.multi_scale:
        return [(np.eye(side, dtype=np.float32), np.eye(side, dtype=np.float32)) for _ in spec.scales_px]
    grids = _scale_grids(layout.grid, spec)
    out_rows, out_cols = grids[spec.resize_output_to_scale_idx]
    return [
        (area_matrix(out_rows * side, rows * side), area_matrix(out_cols * side, cols * side)) for rows, cols in grids
    ]


def s2_tile_count(grid: Grid, spec: TilingSpec) -> int:
    """Tiles that a picture with ``grid`` takes over all scales."""
    return sum(rows * cols for rows, cols in _scale_grids(grid, spec))


def _scale_grids(grid: Grid, spec: TilingSpec) -> list[Grid]:
    return [(k, k) for k in spec.scale_factors[:-1]] + [grid]


def _boxes(grid: Grid, tile_px: int) -> list[TileBox]:
    rows, cols = grid
    return [
        TileBox(rows * tile_px, cols * tile_px, row * tile_px, col * tile_px)
        for row in range(rows)
        for col in range(cols)
    ]


def _dynamic(height: int, width: int, spec: TilingSpec) -> TileLayout:
    grids = candidate_grids(spec.min_tiles, spec.max_tiles)
    grid = find_closest_aspect_ratio(height, width, spec.tile_px, grids)
    boxes = _boxes(grid, spec.tile_px)
    if spec.use_thumbnail and len(boxes) > 1:
        boxes.append(TileBox(spec.tile_px, spec.tile_px, 0, 0))
    return TileLayout(grid, len(boxes), len(boxes) * spec.tokens_per_block, tuple(boxes), out_grid=grid)


def _dynamic_s2(height: int, width: int, spec: TilingSpec) -> TileLayout:
    grids = candidate_grids(spec.scale_factors[-1] ** 2, spec.max_tiles)
    grid = find_closest_aspect_ratio(height, width, spec.tile_px, grids)
    scales = _scale_grids(grid, spec)
    boxes = [box for scale in scales for box in _boxes(scale, spec.tile_px)]
    out_grid = scales[spec.resize_output_to_scale_idx]
    tokens = out_grid[0] * out_grid[1] * spec.tokens_per_block
    return TileLayout(grid, len(boxes), tokens, tuple(boxes), out_grid=out_grid, multi_scale=True)


def _crop(height: int, width: int, spec: TilingSpec) -> TileLayout:
    short = spec.shortest_edge_px or spec.tile_px
    if height <= width:
        resize_h, resize_w = short, int(short * width / height)
    else:
        resize_h, resize_w = int(short * height / width), short
    box = TileBox(resize_h, resize_w, (resize_h - spec.tile_px) // 2, (resize_w - spec.tile_px) // 2)
    return TileLayout((1, 1), 1, spec.tokens_per_block, (box,))
