"""Resizing with fixed-point weights in whole numbers, on a canvas that is really there."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

I64 = npt.NDArray[np.int64]
WEIGHT_BITS = 22


class Axis(Protocol):
    """As kernels.launch.resize.AxisWeights."""

    @property
    def firsts(self) -> npt.NDArray[np.generic]: ...
    @property
    def counts(self) -> npt.NDArray[np.generic]: ...
    @property
    def weights(self) -> npt.NDArray[np.generic]: ...
    @property
    def offset(self) -> int: ...


def resize_normalize(
    image: npt.NDArray[np.uint8],
    rows: Axis,
    columns: Axis,
    places: list[tuple[int, int, int]],
    values: npt.NDArray[np.float32],
    side: int,
    *,
    height_first: bool = False,
    rgb: tuple[int, int, int] = (0, 0, 0),
) -> npt.NDArray[np.float32]:
    """The tiles f32 [n, 3, side, side] of one size, exactly; n counts up to the highest place."""
    height, width = (_extent(axis, size) for axis, size in zip((rows, columns), image.shape[:2], strict=True))
    canvas = np.empty((height, width, 3), np.int64)
    canvas[:] = rgb
    canvas[rows.offset : rows.offset + image.shape[0], columns.offset : columns.offset + image.shape[1]] = image
    for dimension in (0, 1) if height_first else (1, 0):
        axis = (rows, columns)[dimension]
        canvas = np.moveaxis(_one_pass(np.moveaxis(canvas, dimension, 0), axis), 0, dimension)
    tiles = np.full((max(place[0] for place in places) + 1, 3, side, side), np.nan, np.float32)
    for tile, top, left in places:
        pixels = canvas[top : top + side, left : left + side]
        for channel in range(3):
            tiles[tile, channel] = values[channel][pixels[:, :, channel]]
    return tiles


def _extent(axis: Axis, size: int) -> int:
    return max(int((axis.firsts.astype(np.int64) + axis.counts.astype(np.int64)).max()), axis.offset + size)


def _one_pass(pixels: I64, axis: Axis) -> I64:
    out = np.empty((len(axis.firsts), *pixels.shape[1:]), np.int64)
    for place in range(len(out)):
        first, count = int(axis.firsts[place]), int(axis.counts[place])
        weights = axis.weights[place, :count].astype(np.int64)
        total = np.tensordot(weights, pixels[first : first + count], axes=1) + (1 << (WEIGHT_BITS - 1))
        out[place] = np.clip(total >> WEIGHT_BITS, 0, 255)
    return out
