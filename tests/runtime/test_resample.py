"""The resize equals Pillow's bit for bit: Pillow itself is the reference."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.resample import RESAMPLE_NAMES, Canvas, Region, resize, resize_planes

PIL = pytest.importorskip("PIL")
Image = pytest.importorskip("PIL.Image")

# Pillow 12 is the last for Python 3.10; it runs the passes in the older order, but for pictures as narrow as 1:100.
PASSES = "pillow13" if int(PIL.__version__.split(".")[0]) >= 13 else "width_first"
PILLOW = {name: getattr(Image.Resampling, name.upper()) for name in RESAMPLE_NAMES}
side = st.integers(1, 90)


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Noise with flat and saturated areas, so that rounding and clipping both happen."""
    rng = np.random.default_rng(seed)
    rgb = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    rgb[: height // 3] = np.where(rgb[: height // 3] > 127, 255, 0)
    return rgb


def ours(rgb: np.ndarray, height: int, width: int, name: str, **parts: object) -> np.ndarray:
    return resize_planes(rgb, height, width, name, passes=PASSES, **parts).transpose(1, 2, 0)


def pillow(rgb: np.ndarray, height: int, width: int, name: str) -> np.ndarray:
    image = Image.fromarray(rgb)
    if PASSES == "width_first" and name != "nearest":
        image = image.resize((width, rgb.shape[0]), PILLOW[name])
    return np.asarray(image.resize((width, height), PILLOW[name]))


@pytest.mark.parametrize("name", RESAMPLE_NAMES)
@settings(max_examples=60, deadline=None)
@given(height=side, width=side, out_height=side, out_width=side, seed=st.integers(0, 2**32 - 1))
def test_equals_pillow_on_any_size(
    name: str, height: int, width: int, out_height: int, out_width: int, seed: int
) -> None:
    rgb = picture(height, width, seed)
    np.testing.assert_array_equal(ours(rgb, out_height, out_width, name), pillow(rgb, out_height, out_width, name))


SIZES = [
    (1080, 1920, 448, 448),
    (1080, 1920, 336, 597),
    (480, 640, 64, 64),
    (480, 640, 128, 128),
    (720, 1280, 1344, 1792),
    (1, 1, 336, 336),
    (1, 4000, 64, 64),
    (4000, 1, 448, 448),
    (3000, 7, 5, 300),
    (37, 53, 37, 53),
    (37, 53, 37, 20),
    (37, 53, 20, 53),
]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", ["bicubic", "bilinear"])
def test_equals_pillow_on_the_sizes_of_models(size: tuple[int, int, int, int], name: str) -> None:
    height, width, out_height, out_width = size
    rgb = picture(height, width)
    np.testing.assert_array_equal(ours(rgb, out_height, out_width, name), pillow(rgb, out_height, out_width, name))


@pytest.mark.parametrize("name", RESAMPLE_NAMES)
def test_millions_of_values_round_as_pillow_rounds(name: str) -> None:
    """A weight that is off in its last bit shows once in about two million values."""
    rgb = picture(1100, 1234)
    for width in (777, 1999):
        np.testing.assert_array_equal(ours(rgb, 1100, width, name), pillow(rgb, 1100, width, name))


@pytest.mark.parametrize("name", RESAMPLE_NAMES)
@settings(max_examples=40, deadline=None)
@given(data=st.data(), height=side, width=side, out_height=side, out_width=side)
def test_a_region_equals_the_cut_of_the_whole(
    name: str, data: st.DataObject, height: int, width: int, out_height: int, out_width: int
) -> None:
    top = data.draw(st.integers(0, out_height - 1))
    left = data.draw(st.integers(0, out_width - 1))
    region = Region(top, left, data.draw(st.integers(1, out_height - top)), data.draw(st.integers(1, out_width - left)))
    rgb = picture(height, width)
    whole = pillow(rgb, out_height, out_width, name)
    part = ours(rgb, out_height, out_width, name, region=region)
    cut = whole[top : top + region.height, left : left + region.width]
    np.testing.assert_array_equal(part, cut)


@pytest.mark.parametrize("name", RESAMPLE_NAMES)
@settings(max_examples=40, deadline=None)
@given(data=st.data(), height=side, width=side, out_height=side, out_width=side)
def test_a_canvas_equals_a_padded_picture(
    name: str, data: st.DataObject, height: int, width: int, out_height: int, out_width: int
) -> None:
    top, left = data.draw(st.integers(0, 60)), data.draw(st.integers(0, 60))
    full = (height + top + data.draw(st.integers(0, 60)), width + left + data.draw(st.integers(0, 60)))
    colour = tuple(data.draw(st.integers(0, 255)) for _ in range(3))
    rgb = picture(height, width)
    padded = np.full((*full, 3), colour, np.uint8)
    padded[top : top + height, left : left + width] = rgb
    result = ours(rgb, out_height, out_width, name, canvas=Canvas(top, left, *full, colour))
    np.testing.assert_array_equal(result, pillow(padded, out_height, out_width, name))


@settings(max_examples=60, deadline=None)
@given(height=side, width=side, out_height=side, out_width=side)
def test_both_orders_equal_two_resizes_along_one_axis(height: int, width: int, out_height: int, out_width: int) -> None:
    """Along one axis every release of Pillow agrees, so this holds whichever is installed."""
    rgb = picture(height, width)
    width_first = pillow(pillow(rgb, height, out_width, "bicubic"), out_height, out_width, "bicubic")
    planes = resize_planes(rgb, out_height, out_width, passes="width_first")
    np.testing.assert_array_equal(planes.transpose(1, 2, 0), width_first)
    height_first = pillow(pillow(rgb, out_height, width, "bicubic"), out_height, out_width, "bicubic")
    tall = height > out_height and height - out_height > 2 * (width - out_width)
    np.testing.assert_array_equal(resize(rgb, out_height, out_width), height_first if tall else width_first)


def test_a_region_of_a_huge_result_costs_little() -> None:
    """The whole result would be 336 x 22,020,096 px (22 GB); its centre is what a centre crop needs."""
    rgb = picture(1, 65_536)
    middle = Region(0, 11_009_880, 336, 336)
    part = resize_planes(rgb, 336, 22_020_096, region=middle)
    around = rgb[:, 32_700:32_836]  # whole pixels are 336 wide here, so any window far from its own edge agrees
    left = middle.left - 32_700 * 336
    whole = pillow(around, 336, 136 * 336, "bicubic")
    np.testing.assert_array_equal(part.transpose(1, 2, 0), whole[:, left : left + 336])


@pytest.mark.parametrize("region", [Region(0, 0, 9, 4), Region(-1, 0, 2, 2), Region(0, 3, 2, 6)])
def test_a_region_outside_the_result_is_refused(region: Region) -> None:
    with pytest.raises(ValueError, match="does not lie inside 8 x 8"):
        resize_planes(picture(4, 4), 8, 8, region=region)


def test_a_strided_picture_gives_the_same_result() -> None:
    rgb = picture(64, 48)
    flipped = np.ascontiguousarray(rgb[:, ::-1])
    np.testing.assert_array_equal(resize(rgb[:, ::-1], 20, 30), resize(flipped, 20, 30))
