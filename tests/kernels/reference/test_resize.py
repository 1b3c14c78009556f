"""The reference of the resize, against Pillow."""

from __future__ import annotations

import numpy as np
import pytest

from kernels.launch.resize import AxisWeights
from kernels.reference.resize import resize_normalize
from runtime.resample import axis_weights

BYTES = np.tile(np.arange(256, dtype=np.float32), (3, 1))


@pytest.mark.parametrize("size", [(20, 30), (3, 50), (1, 1), (9, 8)], ids=str)
def test_a_picture_is_resized_as_pillow_does(size: tuple[int, int]) -> None:
    image_module = pytest.importorskip("PIL.Image")
    image = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    rows, columns = (AxisWeights(*axis_weights(length, 8, 0, 8, "bicubic"), length) for length in size)
    # Pillow 13 may take the height first; wider or equal pictures have one order in every version.
    tiles = resize_normalize(image, rows, columns, [(0, 0, 0)], BYTES, 8)
    resized = np.asarray(image_module.fromarray(image).resize((8, 8), image_module.Resampling.BICUBIC))
    assert np.array_equal(tiles[0], resized.transpose(2, 0, 1))


def test_a_margin_is_the_canvas_and_tiles_are_its_parts() -> None:
    """Weights of one: the canvas itself, with the picture's pixels at (1, 2)."""
    one = np.full((5, 1), 1 << 22)
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    rows = AxisWeights(np.arange(5), np.ones(5, np.int64), one, 2, offset=1)
    columns = AxisWeights(np.arange(5), np.ones(5, np.int64), one, 2, offset=2)
    tiles = resize_normalize(image, rows, columns, [(1, 1, 2), (0, 3, 0)], BYTES, 2, rgb=(50, 60, 70))
    assert np.array_equal(tiles[1], image.transpose(2, 0, 1))
    assert np.array_equal(tiles[0], np.array([50, 60, 70])[:, None, None] * np.ones((3, 2, 2)))
