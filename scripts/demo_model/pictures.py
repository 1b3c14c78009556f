"""Seeds, picture sizes and S2 grids shared by training and evaluation (numpy only).

Training and evaluation never share a random stream: the first word of every seed is the purpose, so the streams are
disjoint by construction, whatever the seeds are.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from runtime.tiling import candidate_grids, find_closest_aspect_ratio

Family = Literal["demo-llava", "demo-nvila"]
FAMILIES: tuple[Family, ...] = ("demo-llava", "demo-nvila")

PURPOSES = {"train": 0x7261696E, "evaluate": 0x6576616C, "tokenizer": 0x746F6B, "video": 0x766964, "init": 0x696E6974}
assert len(set(PURPOSES.values())) == len(PURPOSES), "two purposes share a random stream"

TILE_PX = 64  # of demo-nvila
MIN_TILES, MAX_TILES = 4, 6
# (rows, columns), every grid that demo-nvila accepts, by area
GRIDS = tuple(sorted(candidate_grids(MIN_TILES, MAX_TILES), key=lambda grid: (grid[0] * grid[1], grid)))

# demo-nvila: how many of 32 pictures have which outline. The order inside a batch is the order here.
OUTLINES = {"square": 8, "wide": 12, "tall": 5, "panorama": 7}
PANORAMAS = {(1, 4): (3.0, 4.3), (1, 5): (4.6, 5.3), (1, 6): (5.6, 6.3)}  # grid: aspects (tall: inverse)


def generator(purpose: str, seed: int, *key: int) -> np.random.Generator:
    """The random stream of one purpose: training and evaluation can never meet."""
    return np.random.default_rng(np.random.SeedSequence([PURPOSES[purpose], seed, *key]))


def closest_grid(width: int, height: int) -> tuple[int, int]:
    """(rows, columns) of the finest S2 scale for a picture: the grid of 4 to 6 tiles whose aspect ratio is closest.

    Ties go to the larger grid when the picture has more than half of its pixels, as in the reference.
    """
    return find_closest_aspect_ratio(height, width, TILE_PX, candidate_grids(MIN_TILES, MAX_TILES))


def picture_size(rng: np.random.Generator, family: Family, outline: str | None = None) -> tuple[int, int]:
    """(width, height) in pixels of a random picture of the family's natural distribution.

    demo-llava squashes every picture to 96 x 96: half are square, a third 4:3-like, some 16:9 and portrait.
    demo-nvila keeps the shape: `outline` is one of `OUTLINES` (default: drawn with their weights).
    """
    if family == "demo-llava":
        short = rng.uniform(96, 136)
        return _sized(_llava_aspect(rng), short)
    if outline is None:
        names = list(OUTLINES)
        outline = names[rng.choice(len(names), p=np.array(list(OUTLINES.values())) / sum(OUTLINES.values()))]
    aspect = _nvila_aspect(rng, outline)
    short = rng.uniform(64, 84) if outline == "panorama" else rng.uniform(112, 144)
    return _sized(aspect, short)


def size_for_grid(rng: np.random.Generator, grid: tuple[int, int]) -> tuple[int, int]:
    """(width, height) of a random picture that gets this grid (rows, columns)."""
    while True:
        rows, columns = grid
        outline = "square" if rows == columns else "panorama" if 1 in grid else "wide" if columns > rows else "tall"
        size = picture_size(rng, "demo-nvila", outline)
        if closest_grid(*size) == grid:
            return size


def _sized(aspect: float, short: float) -> tuple[int, int]:
    width, height = (short * aspect, short) if aspect >= 1 else (short, short / aspect)
    return round(width), round(height)


def _llava_aspect(rng: np.random.Generator) -> float:
    kind = rng.random()
    if kind < 0.45:
        return 1.0
    if kind < 0.80:
        return float(rng.uniform(1.2, 1.5))
    return float(rng.uniform(1.6, 1.8)) if kind < 0.90 else float(rng.uniform(0.7, 0.85))


def _nvila_aspect(rng: np.random.Generator, outline: str) -> float:
    if outline == "square":
        return float(rng.uniform(0.9, 1.12))
    if outline == "panorama":
        low, high = list(PANORAMAS.values())[rng.integers(len(PANORAMAS))]
        aspect = float(rng.uniform(low, high))
        return aspect if rng.random() < 0.5 else 1 / aspect
    aspect = float(rng.choice((4 / 3, 16 / 9, 3 / 2)) if rng.random() < 0.75 else rng.uniform(1.28, 2.1))
    return aspect if outline == "wide" else 1 / aspect
