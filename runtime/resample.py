"""Pillow's resize in numpy, bit for bit, rendering only the part of the result that is wanted.

Preprocessing must see the very pixels that the checkpoint's own image processor saw, and those come from Pillow: two
passes with 22-bit fixed-point weights, rounded to u8 after each. A pass is a banded matrix product in float64, in
which every sum stays an exact integer below 2^53.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt

from runtime.types import ImageArray

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
Resample = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
# Pillow below 13 always resizes the width first; from 13 on the height goes first where it shrinks by more than twice
# the pixels that the width does. The results differ by 1 of 255 in some pixels.
Passes = Literal["pillow13", "width_first"]

# Resample.c of Pillow: 32 bits less 8 for the pixel and 2 for weights that overshoot.
_WEIGHT_BITS = 32 - 8 - 2
# Rows of a result that share one matrix: few enough that its zeros cost little (measured: 8, 16, 32; 16 is fastest).
_BAND = 16
# Multiply-adds per matrix product. BLAS libraries start their threads above about 2^18, and spinning threads that wait
# for each other on a busy machine turned 4 ms into 400 ms (measured with two cores).
_PRODUCT_LIMIT = 200_000
# Source rows that are narrowed at once, so that each product is worth its call.
_ROWS_AHEAD = 128
_CACHED_AXES = 16
# Pillow writes these two as single-precision constants.
_HAMMING_MEAN, _HAMMING_SWING = float(np.float32(0.54)), float(np.float32(0.46))


def _box(x: F64) -> F64:
    return ((x > -0.5) & (x <= 0.5)).astype(np.float64)


def _bilinear(x: F64) -> F64:
    return np.maximum(1.0 - np.abs(x), 0.0)


def _sinc(x: float) -> float:
    return 1.0 if x == 0.0 else math.sin(x * math.pi) / (x * math.pi)


def _hamming_at(x: float) -> float:
    x = abs(x)
    if x == 0.0:
        return 1.0
    if x >= 1.0:
        return 0.0
    return _sinc(x) * (_HAMMING_MEAN + _HAMMING_SWING * math.cos(x * math.pi))


def _hamming(x: F64) -> F64:
    # math.sin, not np.sin: Pillow uses the C library's, and numpy's vector version may differ in the last bit.
    weights: F64 = np.vectorize(_hamming_at, otypes=[np.float64])(x)
    return weights


def _bicubic(x: F64) -> F64:
    a = -0.5
    x = np.abs(x)
    inner = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    outer = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1.0, inner, np.where(x < 2.0, outer, 0.0))


def _lanczos_at(x: float) -> float:
    return _sinc(x) * _sinc(x / 3) if -3.0 <= x < 3.0 else 0.0


def _lanczos(x: F64) -> F64:
    weights: F64 = np.vectorize(_lanczos_at, otypes=[np.float64])(x)
    return weights


# name -> (support in source pixels at scale 1, weight at a distance)
_FILTERS: dict[str, tuple[float, Callable[[F64], F64]]] = {
    "box": (0.5, _box),
    "bilinear": (1.0, _bilinear),
    "hamming": (1.0, _hamming),
    "bicubic": (2.0, _bicubic),
    "lanczos": (3.0, _lanczos),
}
RESAMPLE_NAMES: tuple[str, ...] = ("nearest", *_FILTERS)


@dataclass(frozen=True, slots=True)
class Region:
    """A rectangle of the resized picture, in its pixels."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True, slots=True)
class Canvas:
    """A larger one-coloured picture on which the picture lies with its corner at (top, left); it is never allocated."""

    top: int
    left: int
    height: int
    width: int
    rgb: tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class _Band:
    """Weights of results ``first:last`` over sources ``start:stop``; ``outside`` sums those that fall on the canvas."""

    first: int
    last: int
    start: int
    stop: int
    weights: F64  # [last - first, stop - start], integers
    outside: F64 | None  # [last - first]; None where the sources cover everything


def resize(rgb: ImageArray, height: int, width: int, resample: Resample = "bicubic") -> ImageArray:
    """Resize a picture as ``PIL.Image.resize((width, height), resample)`` does.

    rgb u8 [H, W, 3] -> u8 [height, width, 3], equal to Pillow's result in every bit.
    """
    planes = resize_planes(rgb, height, width, resample)
    return np.ascontiguousarray(planes.transpose(1, 2, 0))


def resize_planes(
    rgb: ImageArray,
    height: int,
    width: int,
    resample: Resample = "bicubic",
    *,
    region: Region | None = None,
    canvas: Canvas | None = None,
    passes: Passes = "pillow13",
) -> ImageArray:
    """Resize a picture (or a canvas with the picture on it) to height x width and return a region of the result.

    rgb u8 [H, W, 3] -> u8 [3, region.height, region.width]. The region must lie inside the result, the picture inside
    the canvas (ValueError). Work and memory follow the region, not the result. Source: Pillow's Resample.c, Geometry.c.
    """
    part = region or Region(0, 0, height, width)
    if not (0 <= part.top <= part.top + part.height <= height and 0 <= part.left <= part.left + part.width <= width):
        raise ValueError(f"{part} does not lie inside {height} x {width}")
    full = canvas or Canvas(0, 0, rgb.shape[0], rgb.shape[1], (0, 0, 0))
    if resample == "nearest":
        return _nearest(rgb, height, width, part, full)
    rows = _axis(full.height, height, part.top, part.top + part.height, full.top, rgb.shape[0], resample)
    columns = _axis(full.width, width, part.left, part.left + part.width, full.left, rgb.shape[1], resample)
    # Weights of one axis sum to 2^22 give or take a few units, so a row of pure canvas colour keeps its colour.
    colour = np.array(full.rgb, np.float64)
    if passes == "pillow13" and height_first(full.height, full.width, height, width):
        turned = _render(rgb.transpose(1, 0, 2), columns, rows, colour, (part.width, part.height))
        return np.ascontiguousarray(turned.transpose(0, 2, 1))
    return _render(rgb, rows, columns, colour, (part.height, part.width))


def height_first(from_height: int, from_width: int, height: int, width: int) -> bool:
    """Say whether Pillow 13 resizes the height before the width."""
    lost_rows, lost_columns = from_height - height, from_width - width
    return lost_rows > 0 and lost_rows > 2 * lost_columns


def axis_weights(n_in: int, n_out: int, first: int, last: int, resample: Resample) -> tuple[I64, I64, F64]:
    """First source [n], number of sources [n] and weights [n, taps] in steps of 2^-22 of results ``first:last``."""
    if resample == "nearest":
        sources = _nearest_sources(n_in, n_out, first, last - first)
        return sources, np.ones_like(sources), np.full((len(sources), 1), float(1 << _WEIGHT_BITS))
    return _weights(n_in, n_out, first, last, resample)


def _render(
    rgb: ImageArray, rows: tuple[_Band, ...], columns: tuple[_Band, ...], colour: F64, size: tuple[int, int]
) -> ImageArray:
    """Columns, then rows, band by band, so that the picture between the passes is never whole in memory."""
    out = np.empty((3, *size), np.uint8)
    narrowed = np.empty((3, 0, size[1]), np.float64)  # of source rows begin:end
    begin = end = 0
    for band in rows:
        if band.stop > end:
            kept = max(end - band.start, 0)
            start = max(end, band.start)
            end = min(max(band.stop, start + _ROWS_AHEAD), rows[-1].stop)
            fresh = _narrow(rgb[start:end], columns, colour, size[1])
            narrowed = np.concatenate([narrowed[:, narrowed.shape[1] - kept :], fresh], axis=1)
            begin = start - kept
        window = narrowed[:, band.start - begin : band.stop - begin]
        step = max(_PRODUCT_LIMIT // max(band.weights.size, 1), _BAND)
        for left in range(0, size[1], step):
            sums = band.weights @ window[:, :, left : left + step]
            if band.outside is not None:
                sums += band.outside[:, None] * colour[:, None, None]
            out[:, band.first : band.last, left : left + step] = _to_u8(sums)
    return out


def _narrow(rgb: ImageArray, columns: tuple[_Band, ...], colour: F64, width: int) -> F64:
    """The column pass: u8 [h, W, 3] -> whole numbers 0..255 as f64 [3, h, width]."""
    out = np.empty((3, rgb.shape[0], width), np.float64)
    widest = max((band.weights.size for band in columns), default=1)
    step = max(_PRODUCT_LIMIT // max(widest, 1), 1)
    for top in range(0, rgb.shape[0], step):
        planes = np.ascontiguousarray(rgb[top : top + step].transpose(2, 0, 1)).astype(np.float64)
        part = out[:, top : top + step]
        for band in columns:
            part[:, :, band.first : band.last] = planes[:, :, band.start : band.stop] @ band.weights.T
            if band.outside is not None:
                part[:, :, band.first : band.last] += band.outside * colour[:, None, None]
        _to_u8(part)
    return out


def _to_u8(sums: F64) -> F64:
    """Round fixed-point sums to pixels in place: ``clip8((sum + half) >> 22)``."""
    sums *= 2.0**-_WEIGHT_BITS
    sums += 0.5
    np.floor(sums, out=sums)
    return np.clip(sums, 0.0, 255.0, out=sums)


@lru_cache(maxsize=_CACHED_AXES)
def _axis(n_full: int, n_out: int, first: int, last: int, offset: int, n_in: int, resample: str) -> tuple[_Band, ...]:
    """Bands of weights for results ``first:last`` of ``n_out``; the ``n_in`` pixels lie at ``offset`` of ``n_full``."""
    return tuple(
        _band(n_full, n_out, start, min(start + _BAND, last), first, offset, n_in, resample)
        for start in range(first, last, _BAND)
    )


def _band(n_full: int, n_out: int, start: int, stop: int, first: int, offset: int, n_in: int, resample: str) -> _Band:
    lows, counts, weights = _weights(n_full, n_out, start, stop, resample)
    low = int(lows[0])
    high = int((lows + counts).max())
    dense = np.zeros((stop - start, high - low), np.float64)
    for row in range(stop - start):
        at = int(lows[row]) - low
        dense[row, at : at + int(counts[row])] = weights[row, : counts[row]]
    inside_low = min(max(low, offset), high)
    inside_high = max(min(high, offset + n_in), inside_low)
    inside = np.ascontiguousarray(dense[:, inside_low - low : inside_high - low])
    outside = dense.sum(axis=1) - inside.sum(axis=1) if inside.shape != dense.shape else None
    begin = min(max(inside_low - offset, 0), n_in)
    return _Band(start - first, stop - first, begin, begin + inside.shape[1], inside, outside)


def _weights(n_in: int, n_out: int, start: int, stop: int, resample: str) -> tuple[I64, I64, F64]:
    """First source, number of sources and fixed-point weights [n, taps] of results ``start:stop``.

    As precompute_coeffs and normalize_coeffs_8bpc of Pillow compute them.
    """
    filter_support, weigh = _FILTERS[resample]
    scale = n_in / n_out
    stretch = max(scale, 1.0)
    support = filter_support * stretch
    centers = (np.arange(start, stop) + 0.5) * scale
    lows = np.maximum((centers - support + 0.5).astype(np.int64), 0)
    counts = np.minimum((centers + support + 0.5).astype(np.int64), n_in) - lows
    taps = np.arange(int(counts.max()))
    weights = weigh((taps + lows[:, None] - centers[:, None] + 0.5) * (1.0 / stretch))
    weights[taps >= counts[:, None]] = 0.0
    totals = np.cumsum(weights, axis=1)[:, -1:]  # cumsum adds in Pillow's order, sum does not
    np.divide(weights, totals, out=weights, where=totals != 0.0)
    fixed = np.trunc(weights * (1 << _WEIGHT_BITS) + np.where(weights < 0, -0.5, 0.5))
    return lows, counts, fixed


def _nearest(rgb: ImageArray, height: int, width: int, part: Region, full: Canvas) -> ImageArray:
    rows = _nearest_sources(full.height, height, part.top, part.height) - full.top
    columns = _nearest_sources(full.width, width, part.left, part.width) - full.left
    row_in = (rows >= 0) & (rows < rgb.shape[0])
    column_in = (columns >= 0) & (columns < rgb.shape[1])
    out = np.empty((part.height, part.width, 3), np.uint8)
    out[:] = np.array(full.rgb, np.uint8)
    out[np.ix_(row_in, column_in)] = rgb[np.ix_(rows[row_in], columns[column_in])]
    return np.ascontiguousarray(out.transpose(2, 0, 1))


def _nearest_sources(n_in: int, n_out: int, first: int, count: int) -> I64:
    scale = n_in / n_out
    # Pillow adds the scale up position by position; a product would round differently.
    steps = np.full(first + count, scale)
    steps[:1] = scale * 0.5
    return np.minimum(np.cumsum(steps)[first:].astype(np.int64), n_in - 1)
