"""From a picture to the tiles that the vision tower takes: resize, cut, normalise. Stage "preprocess" of a frame.

Numpy alone, and equal in every bit to what the CLIP and SigLIP image processors of transformers make with Pillow.
"""

from __future__ import annotations

from collections import defaultdict
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from runtime.bundle.manifest import PreprocessSpec, VisionSection
from runtime.errors import ImageError
from runtime.resample import Canvas, Region, resize_planes
from runtime.tiling import TileBox, TileLayout
from runtime.types import ImageArray

Tiles = npt.NDArray[np.float32]


def preprocess(rgb: ImageArray, layout: TileLayout, vision: VisionSection) -> Tiles:
    """Cut the tiles of a layout out of a picture and normalise them.

    rgb u8 [H, W, 3] -> f32 [layout.num_tiles, 3, S, S] with S = ``vision.tower.tile_px``, C-contiguous, in the order of
    ``layout.tiles``. Each size that tiles are cut from is rendered once, and only where tiles lie. A padded picture
    (``layout.pad_px``) is resized as if it lay on a square of ``pad_rgb``, by default of ``int(mean * 255)``.
    Raises ImageError for an array that is not u8 [H, W, 3].
    """
    check_frame(rgb)
    spec, tile_px = vision.preprocess, vision.tower.tile_px
    table = value_table(spec.rescale, spec.mean, spec.std)
    canvas = canvas_of(layout, spec)
    tiles = np.empty((layout.num_tiles, 3, tile_px, tile_px), np.float32)
    for (height, width), boxes in by_size(layout.tiles).items():
        area = bounding_region([box for _, box in boxes], tile_px)
        planes = resize_planes(rgb, height, width, spec.resample, region=area, canvas=canvas)
        for index, box in boxes:
            top, left = box.top - area.top, box.left - area.left
            for channel in range(3):
                pixels = planes[channel, top : top + tile_px, left : left + tile_px]
                # "clip" because numpy buffers its output otherwise; every index is valid
                np.take(table[channel], pixels, out=tiles[index, channel], mode="clip")
    return tiles


def check_frame(rgb: ImageArray) -> None:
    """Refuse what is not u8 [H, W, 3] with ImageError."""
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.size == 0:
        raise ImageError(
            f"preprocess takes u8 [H, W, 3], not {rgb.dtype} {list(rgb.shape)}",
            hint="runtime.images.load_image makes it",
        )


def by_size(boxes: tuple[TileBox, ...]) -> dict[tuple[int, int], list[tuple[int, TileBox]]]:
    """Group numbered tiles by the (height, width) that the picture is resized to for them."""
    groups: dict[tuple[int, int], list[tuple[int, TileBox]]] = defaultdict(list)
    for index, box in enumerate(boxes):
        groups[box.resize_h, box.resize_w].append((index, box))
    return groups


def bounding_region(boxes: list[TileBox], tile_px: int) -> Region:
    """Return the least part of the resized picture that holds all tiles."""
    top, left = min(box.top for box in boxes), min(box.left for box in boxes)
    bottom, right = max(box.top for box in boxes) + tile_px, max(box.left for box in boxes) + tile_px
    return Region(top, left, bottom - top, right - left)


def canvas_of(layout: TileLayout, spec: PreprocessSpec) -> Canvas | None:
    """Return the square that a padded picture lies on; None when it is not padded."""
    if not layout.pad_px:
        return None
    red, green, blue = spec.pad_rgb or [int(value * 255) for value in spec.mean]
    return Canvas(layout.pad_top, layout.pad_left, layout.pad_px, layout.pad_px, (red, green, blue))


@lru_cache(maxsize=8)
def value_table(rescale: float, mean: tuple[float, ...], std: tuple[float, ...]) -> Tiles:
    """Return what each pixel value becomes, f32 [3, 256], with the roundings of transformers' processors.

    They multiply in float64, round to float32, then subtract and divide in float32.
    """
    scaled = (np.arange(256, dtype=np.float64) * rescale).astype(np.float32)
    centred = scaled[None, :] - np.array(mean, np.float32)[:, None]
    table: Tiles = (centred / np.array(std, np.float32)[:, None]).astype(np.float32)
    table.setflags(write=False)
    return table
