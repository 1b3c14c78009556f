"""Launches the making of tiles on the device (csrc/resize.cu), and plans it on the host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kernels.arrays import DeviceArray, check_array
from kernels.driver.protocol import Stream
from kernels.errors import ArrayError
from kernels.kernel import Kernel
from kernels.reference.resize import resize_normalize as reference

if TYPE_CHECKING:
    from kernels.loading import Kernels

THREADS = 128
MAX_GRID_Y = 65535
MAX_WEIGHT_SUM = 2**23  # of absolute weights: 255 times as much still fits an int
CHANNELS = 3
I32 = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class AxisWeights:
    """Results of one axis: result i is the sum of weights[i, k] · source[firsts[i] + k] over k < counts[i].

    firsts, counts [n] and weights [n, taps] hold integers, weights in steps of 2^-22. The axis has ``length`` pixels of
    the picture, and they are sources offset .. offset+length-1; the sources around them are the canvas.
    """

    firsts: npt.NDArray[Any]
    counts: npt.NDArray[Any]
    weights: npt.NDArray[Any]
    length: int
    offset: int = 0

    def __post_init__(self) -> None:
        n = len(self.firsts)
        if n < 1 or self.counts.shape != (n,) or self.weights.ndim != 2 or len(self.weights) != n:
            raise ArrayError(f"an axis of {n} results has {self.counts.shape} counts and {self.weights.shape} weights")
        if int(self.counts.min()) < 0 or int(self.counts.max()) > self.weights.shape[1]:
            raise ArrayError(f"counts of {self.counts.min()} to {self.counts.max()}, 0 to {self.weights.shape[1]} fit")
        if int(np.abs(self.weights).sum(axis=1).max()) > MAX_WEIGHT_SUM:
            raise ArrayError(f"absolute weights add up to more than {MAX_WEIGHT_SUM}, so that sums could overflow")
        if self.length < 1 or self.offset < 0:
            raise ArrayError(f"a picture of {self.length} pixels at {self.offset} of its canvas")

    @property
    def results(self) -> int:
        """How many results there are."""
        return len(self.firsts)

    @property
    def used(self) -> tuple[int, int]:
        """The picture's pixels that any result needs, as (start, stop); (0, 0) when all come from the canvas."""
        start = max(int(self.firsts.min()) - self.offset, 0)
        stop = min(int((self.firsts + self.counts).max()) - self.offset, self.length)
        return (start, stop) if start < stop else (0, 0)

    def table(self) -> I32:
        """As the kernel reads it, i32 [2 + taps, n]."""
        rows = [self.firsts[None], self.counts[None], self.weights.T]
        return np.ascontiguousarray(np.concatenate(rows), np.int32)


@dataclass(frozen=True, slots=True)
class ResizePlan:
    """All tiles that are cut from one size of a picture.

    rows and columns make the part of the resized picture that is wanted; ``height_first`` resizes rows before columns.
    places: per tile (its number, top, left), in results of rows and columns. rgb: the canvas' colour.
    """

    rows: AxisWeights
    columns: AxisWeights
    places: Sequence[tuple[int, int, int]]
    height_first: bool = False
    rgb: tuple[int, int, int] = (0, 0, 0)

    @property
    def first(self) -> AxisWeights:
        """The axis that is resized first."""
        return self.rows if self.height_first else self.columns

    @property
    def second(self) -> AxisWeights:
        """The axis that is resized second."""
        return self.columns if self.height_first else self.rows

    @property
    def between(self) -> tuple[int, int]:
        """Height and width of the picture between the passes; one may be 0."""
        start, stop = self.second.used
        return (self.rows.results, stop - start) if self.height_first else (stop - start, self.columns.results)

    @property
    def scratch_bytes(self) -> int:
        """What the picture between the passes takes, at least 1."""
        height, width = self.between
        return max(CHANNELS * height * width, 1)

    def tables(self) -> I32:
        """Everything that the kernel reads of the plan, i32: the first axis, the second axis, the places."""
        places = np.array(self.places, np.int32)
        return np.concatenate([self.first.table().ravel(), self.second.table().ravel(), places.ravel()])

    @property
    def table_sizes(self) -> tuple[int, int, int]:
        """Lengths of the three parts of `tables`."""
        first, second = ((2 + axis.weights.shape[1]) * axis.results for axis in (self.first, self.second))
        return first, second, CHANNELS * len(self.places)


def resize_normalize(
    kernels: Kernels,
    stream: Stream,
    image: DeviceArray,
    plan: ResizePlan,
    tables: DeviceArray,
    values: DeviceArray,
    scratch: DeviceArray,
    tiles: DeviceArray,
) -> None:
    """Resize a picture as Pillow does with 8 bits, cut the plan's tiles, and replace each byte by its value.

    image u8 [H, W, 3]; tables i32: ``plan.tables()``; values f32 [3, 256], per channel and byte; scratch u8 of at least
    ``plan.scratch_bytes``; tiles f32, f16 or bf16 [n, 3, S, S], of which the plan's are written, each value rounded
    once to their type. Raises ArrayError. Source: Pillow's Resample.c.
    """
    check_array("image", image, "u8", (plan.rows.length, plan.columns.length, CHANNELS), alignment=1)
    sizes = plan.table_sizes
    check_array("tables", tables, "i32", (sum(sizes),), alignment=4)
    check_array("values", values, "f32", (CHANNELS, 256), alignment=4)
    check_array("scratch", scratch, "u8", (None,), alignment=1)
    if scratch.nbytes < plan.scratch_bytes:
        raise ArrayError(f"scratch has {scratch.nbytes} bytes, the picture between the passes {plan.scratch_bytes}")
    check_array("tiles", tiles, ("f32", "f16", "bf16"), (None, CHANNELS, None, None))
    _check_places(plan, tiles)
    _first_pass(kernels, stream, image, plan, tables.ptr, scratch)
    _second_pass(kernels, stream, plan, tables.ptr + 4 * sizes[0], values, scratch, tiles)


def _check_places(plan: ResizePlan, tiles: DeviceArray) -> None:
    count, _, side, width = tiles.shape
    if side != width or side > MAX_GRID_Y:
        raise ArrayError(f"tiles of {side} x {width}, expected squares of at most {MAX_GRID_Y}")
    if not 1 <= len(plan.places) <= MAX_GRID_Y:
        raise ArrayError(f"a plan of {len(plan.places)} tiles, expected 1 to {MAX_GRID_Y}")
    lowest, rightmost = plan.rows.results - side, plan.columns.results - side
    for tile, top, left in plan.places:
        if not (0 <= tile < count and 0 <= top <= lowest and 0 <= left <= rightmost):
            raise ArrayError(
                f"tile {tile} of {count} at ({top}, {left}) does not lie inside"
                f" {plan.rows.results} x {plan.columns.results}"
            )


def _first_pass(
    kernels: Kernels, stream: Stream, image: DeviceArray, plan: ResizePlan, table: int, scratch: DeviceArray
) -> None:
    height, width = plan.between
    if not height or not width:
        return
    axis, row = plan.first, plan.columns.length * CHANNELS
    along, across = (row, CHANNELS) if plan.height_first else (CHANNELS, row)
    kernels.launch(
        "resize_normalize_first",
        (-(-width // THREADS), min(height, MAX_GRID_Y), 1),
        (THREADS, 1, 1),
        0,
        stream,
        "PqqqiiiiPiiPii",
        *(image.ptr, along, across, 1, axis.offset, axis.offset + axis.length, _packed(plan.rgb)),
        *(plan.second.used[0], table, axis.results, int(plan.height_first), scratch.ptr, height, width),
    )


def _second_pass(
    kernels: Kernels,
    stream: Stream,
    plan: ResizePlan,
    table: int,
    values: DeviceArray,
    scratch: DeviceArray,
    tiles: DeviceArray,
) -> None:
    height, width = plan.between
    axis, side, (start, stop) = plan.second, tiles.shape[2], plan.second.used
    along, across = (1, width) if plan.height_first else (width, 1)
    kernels.launch(
        f"resize_normalize_{tiles.dtype}",
        (-(-side // THREADS), side, len(plan.places)),
        (THREADS, 1, 1),
        0,
        stream,
        "PqqqiiiPiiPPPi",
        *(scratch.ptr, along, across, height * width, axis.offset + start, axis.offset + stop, _packed(plan.rgb)),
        *(table, axis.results, int(not plan.height_first), table + 4 * plan.table_sizes[1], values.ptr),
        *(tiles.ptr, side),
    )


def _packed(rgb: tuple[int, int, int]) -> int:
    if not all(0 <= value <= 255 for value in rgb):
        raise ArrayError(f"the colour {rgb} is outside 0..255")
    return rgb[0] << 16 | rgb[1] << 8 | rgb[2]


KERNELS = (
    Kernel(
        "resize_normalize",
        "resize.cu",
        ("resize_normalize_first", "resize_normalize_f32", "resize_normalize_f16", "resize_normalize_bf16"),
        resize_normalize,
        reference,
    ),
)
