"""Known answers of resize_normalize: whole numbers in, so that every value of every tile is exact."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kernels.arrays import DeviceArray, DType, from_host_dtype, to_host_dtype
from kernels.cases.numbers import integers, uniform
from kernels.kernel import Case
from kernels.launch.resize import AxisWeights, ResizePlan, resize_normalize
from kernels.reference import resize as reference
from kernels.workbench import Workbench

ONE = 1 << 22


@dataclass(frozen=True)
class Shape:
    """A picture, the size it gets, and the tiles' side and corners."""

    picture: tuple[int, int]
    results: tuple[int, int]
    side: int
    corners: tuple[tuple[int, int], ...]
    dtype: DType = "f32"
    height_first: bool = False
    margin: tuple[int, int] = (0, 0)


SHAPES = (
    Shape((9, 13), (6, 8), 3, ((0, 0), (3, 5), (2, 1))),
    Shape((1, 1), (5, 5), 5, ((0, 0),), "f16"),
    Shape((31, 7), (4, 6), 4, ((0, 1),), "bf16", height_first=True),
    Shape((5, 11), (130, 140), 130, ((0, 10),), "f32", height_first=True, margin=(4, 0)),
    Shape((6, 3), (9, 9), 9, ((0, 0),), "f16", margin=(0, 3)),
)


def cases() -> Iterator[Case]:
    """Both orders of the passes, every type of tiles, canvases, one pixel, tiles over and beside one another."""
    for seed, shape in enumerate(SHAPES):
        yield make(shape, seed)


def resize_on(
    bench: Workbench,
    image: npt.NDArray[np.uint8],
    plan: ResizePlan,
    values: npt.NDArray[np.float32],
    tiles: DeviceArray,
) -> None:
    """resize_normalize with everything but the result uploaded for it."""
    resize_normalize(
        bench.kernels,
        bench.stream,
        bench.upload(image, "u8"),
        plan,
        bench.upload(plan.tables(), "i32"),
        bench.upload(values, "f32"),
        bench.empty((plan.scratch_bytes,), "u8"),
        tiles,
    )


def make(shape: Shape, seed: int) -> Case:
    """A case with made-up weights that overshoot, so that both ends are clipped. Tile 0 is left alone."""
    image = integers(seed, (*shape.picture, 3), 0, 256).astype(np.uint8)
    values = uniform(seed + 1, (3, 256), -3.0, 3.0).astype(np.float32)
    axes = [
        axis(length, results, margin, seed + 2 + number)
        for number, (length, results, margin) in enumerate(zip(shape.picture, shape.results, shape.margin, strict=True))
    ]
    places = [(number + 1, top, left) for number, (top, left) in enumerate(shape.corners)]
    plan = ResizePlan(axes[0], axes[1], places, shape.height_first, (250, 3, 128))

    def run(bench: Workbench) -> Mapping[str, npt.NDArray[Any]]:
        tiles = bench.empty((len(places) + 1, 3, shape.side, shape.side), shape.dtype)
        resize_on(bench, image, plan, values, tiles)
        found = bench.download(tiles)
        return {"tiles": found[1:], "untouched": np.isnan(found[0])}

    exact = reference.resize_normalize(
        image, axes[0], axes[1], places, values, shape.side, height_first=shape.height_first, rgb=plan.rgb
    )
    rounded = from_host_dtype(to_host_dtype(exact[1:], shape.dtype), shape.dtype)
    expected = {"tiles": rounded, "untouched": np.ones(exact.shape[1:], np.bool_)}
    order = "height first" if shape.height_first else "width first"
    name = f"{shape.picture} to {shape.results}, {order}, margin {shape.margin}"
    return Case("resize_normalize", f"resize_normalize_{shape.dtype}", name, run, expected)


def axis(length: int, results: int, margin: int, seed: int) -> AxisWeights:
    """Up to four sources a result, spread over the canvas; weights add up to one, the outer ones are negative."""
    full = length + 2 * margin
    taps = min(4, full)
    firsts = np.arange(results) * (full - taps) // max(results - 1, 1)
    counts = integers(seed, (results,), 1, taps + 1)
    weights = integers(seed + 1, (results, taps), -ONE // 8, ONE // 2)
    weights[np.arange(taps) >= counts[:, None]] = 0
    weights[:, 0] += ONE - weights.sum(axis=1)
    return AxisWeights(firsts, counts, weights, length, margin)
