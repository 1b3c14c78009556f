"""Tiles on the emulator: Pillow's bytes, exact values, one pixel and extreme shapes, refusals."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from kernels.arrays import DeviceArray
from kernels.cases.resize import axis, cases, resize_on
from kernels.errors import ArrayError
from kernels.kernel import Case
from kernels.launch.resize import KERNELS, AxisWeights, ResizePlan, resize_normalize
from kernels.loading import Kernels
from kernels.selftest.running import run_case
from kernels.workbench import Workbench
from runtime.resample import axis_weights, height_first

CASES = list(cases())
FIRST = "resize_normalize_first"
BYTES = np.tile(np.arange(256, dtype=np.float32), (3, 1))  # every byte becomes itself


def picture(height: int, width: int) -> npt.NDArray[np.uint8]:
    """Noise, and a hard edge that makes the filters overshoot."""
    rgb = np.random.default_rng(height * 7919 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    rgb[: height // 2, : width // 2] = rgb[: height // 2, : width // 2] // 128 * 255
    return rgb


def plan_for(size: tuple[int, int], resized: tuple[int, int], resample: Any, places: list[Any]) -> ResizePlan:
    rows = AxisWeights(*axis_weights(size[0], resized[0], 0, resized[0], resample), size[0])
    columns = AxisWeights(*axis_weights(size[1], resized[1], 0, resized[1], resample), size[1])
    return ResizePlan(rows, columns, places, height_first(*size, *resized))


def launch(bench: Workbench, image: npt.NDArray[np.uint8], plan: ResizePlan, tiles: DeviceArray) -> None:
    resize_on(bench, image, plan, BYTES, tiles)


@pytest.mark.usefixtures("schedule")
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.entry} {case.name}")
def test_tiles_are_exact_in_every_schedule(kernels: Kernels, case: Case) -> None:
    assert run_case(kernels, case) == 0.0
    assert kernels.launched == {case.entry: 1, FIRST: 1}


def test_the_cases_cover_every_entry() -> None:
    covered = {case.entry for case in CASES} | {FIRST}
    assert covered == {entry for kernel in KERNELS for entry in kernel.entries}


SIZES = [(48, 64), (108, 192), (64, 48), (33, 33), (1, 1), (1, 40), (40, 1), (97, 31), (400, 5), (5, 700), (32, 32)]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("resample", ["bicubic", "bilinear", "lanczos", "nearest"])
def test_bytes_are_pillows(bench: Workbench, size: tuple[int, int], resample: str) -> None:
    image_module = pytest.importorskip("PIL.Image")
    image, plan = picture(*size), plan_for(size, (33, 33), resample, [(0, 0, 0)])
    if int(pytest.importorskip("PIL").__version__.split(".")[0]) < 13:
        plan = replace(plan, height_first=False)
    tiles = bench.empty((1, 3, 33, 33), "f32")
    launch(bench, image, plan, tiles)
    filters = image_module.Resampling
    resized = np.asarray(image_module.fromarray(image).resize((33, 33), filters[resample.upper()]))
    assert np.array_equal(bench.download(tiles)[0], resized.transpose(2, 0, 1))


def test_parts_of_one_size_are_those_of_the_whole(bench: Workbench) -> None:
    image = picture(70, 50)
    places = [(tile, top, left) for tile, (top, left) in enumerate([(0, 0), (0, 16), (16, 0), (16, 16), (5, 9)])]
    whole, parts = bench.empty((1, 3, 32, 32), "f32"), bench.empty((6, 3, 16, 16), "f32")
    launch(bench, image, plan_for((70, 50), (32, 32), "bicubic", [(0, 0, 0)]), whole)
    launch(bench, image, plan_for((70, 50), (32, 32), "bicubic", places), parts)
    one, many = bench.download(whole)[0], bench.download(parts)
    for tile, top, left in places:
        assert np.array_equal(many[tile], one[:, top : top + 16, left : left + 16])
    assert np.isnan(many[5]).all()  # no place names it


@pytest.mark.parametrize("height_first", [False, True])
def test_a_plan_of_a_part_reads_that_part_of_the_picture(bench: Workbench, height_first: bool) -> None:
    """A part of 8 x 9 with corner (11, 14) of 30 x 30; the picture's first rows and columns are not needed."""
    image, whole = picture(90, 80), bench.empty((1, 3, 30, 30), "f32")
    plan = replace(plan_for((90, 80), (30, 30), "bicubic", [(0, 0, 0)]), height_first=height_first)
    launch(bench, image, plan, whole)
    rows = AxisWeights(*axis_weights(90, 30, 11, 19, "bicubic"), 90)
    columns = AxisWeights(*axis_weights(80, 30, 14, 23, "bicubic"), 80)
    assert rows.used[0] > 0
    assert columns.used[0] > 0
    part = bench.empty((1, 3, 8, 8), "f32")
    launch(bench, image, ResizePlan(rows, columns, [(0, 0, 1)], height_first), part)
    assert np.array_equal(bench.download(part)[0], bench.download(whole)[0][:, 11:19, 15:23])


def test_a_part_that_lies_on_the_canvas_alone_has_its_colour(bench: Workbench) -> None:
    """No result of the rows needs the picture, so there is nothing to resize first."""
    ones = np.full((4, 1), 1 << 22)
    rows = AxisWeights(np.arange(4), np.ones(4, np.int64), ones, 2, offset=9)
    columns = AxisWeights(np.arange(4), np.ones(4, np.int64), ones, 3)
    tiles = bench.empty((1, 3, 4, 4), "f32")
    launch(bench, picture(2, 3), ResizePlan(rows, columns, [(0, 0, 0)], rgb=(7, 8, 255)), tiles)
    assert np.array_equal(bench.download(tiles)[0], np.array([7.0, 8.0, 255.0])[:, None, None] * np.ones((3, 4, 4)))
    assert bench.kernels.launched[FIRST] == 0


def test_more_rows_than_a_grid_has_are_resized(bench: Workbench) -> None:
    """70000 rows of one pixel, each kept by the first pass."""
    image = np.arange(70_000 * 3).reshape(70_000, 1, 3).astype(np.uint8)
    rows = AxisWeights(np.array([69_999, 0]), np.ones(2, np.int64), np.full((2, 1), 1 << 22), 70_000)
    columns = AxisWeights(np.zeros(2, np.int64), np.ones(2, np.int64), np.full((2, 1), 1 << 22), 1)
    tiles = bench.empty((1, 3, 2, 2), "f32")
    launch(bench, image, ResizePlan(rows, columns, [(0, 0, 0)]), tiles)
    assert np.array_equal(bench.download(tiles)[0][:, :, 0].T, image[[69_999, 0], 0])


def test_what_the_kernel_cannot_take_is_refused(bench: Workbench) -> None:
    plan = plan_for((9, 8), (6, 6), "bicubic", [(0, 0, 0)])
    good: dict[str, Any] = {
        "image": bench.upload(picture(9, 8), "u8"),
        "plan": plan,
        "tables": bench.upload(plan.tables(), "i32"),
        "values": bench.upload(BYTES, "f32"),
        "scratch": bench.empty((plan.scratch_bytes,), "u8"),
        "tiles": bench.empty((1, 3, 6, 6), "f32"),
    }
    wrong = [
        ({"image": bench.upload(picture(8, 9), "u8")}, "image has the shape"),
        ({"image": bench.upload(picture(9, 8), "f32")}, "image is f32"),
        ({"tables": good["tables"].rows(1, 3)}, "tables has the shape"),
        ({"values": bench.empty((3, 255), "f32")}, "values has the shape"),
        ({"values": replace(good["values"], ptr=good["values"].ptr + 2)}, "values lies at"),
        ({"scratch": good["scratch"].rows(0, plan.scratch_bytes - 1)}, f"passes {plan.scratch_bytes}"),
        ({"tiles": bench.empty((1, 3, 6, 6), "i8")}, "tiles is i8"),
        ({"tiles": bench.empty((1, 3, 6, 5), "f32")}, "tiles of 6 x 5"),
        ({"tiles": bench.empty((1, 3, 7, 7), "f32")}, "does not lie inside 6 x 6"),
        ({"tiles": replace(good["tiles"], shape=(0, 3, 6, 6))}, "tiles has the shape"),
        ({"plan": replace(plan, rgb=(0, 256, 0))}, "outside 0..255"),
    ]
    for change, message in wrong:
        with pytest.raises(ArrayError, match=message):
            resize_normalize(bench.kernels, bench.stream, **{**good, **change})
    for places, message in (([(1, 0, 0)], "tile 1 of 1"), ([(0, 0, 1)], r"at \(0, 1\)"), ([], "a plan of 0 tiles")):
        other = replace(plan, places=places)
        change = {"plan": other, "tables": bench.upload(other.tables(), "i32")}
        with pytest.raises(ArrayError, match=message):
            resize_normalize(bench.kernels, bench.stream, **{**good, **change})
    assert not bench.kernels.launched


def test_an_axis_that_cannot_be_is_refused() -> None:
    good = axis(5, 4, 0, 1)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"firsts": good.firsts[:0]}, "an axis of 0 results"),
        ({"counts": good.counts[:3]}, r"has \(3,\) counts"),
        ({"counts": good.counts + 4}, "0 to 4 fit"),
        ({"weights": good.weights * 9}, "sums could overflow"),
        ({"length": 0}, "a picture of 0 pixels"),
        ({"offset": -1}, "at -1 of its canvas"),
    ]
    for change, message in wrong:
        with pytest.raises(ArrayError, match=message):
            replace(good, **change)
