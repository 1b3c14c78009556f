"""Pictures of a request: copied from the caller, shared where they are the same, laid out by message."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from runtime.errors import InputError, SourceError
from runtime.pictures import Shown, lay_out, take_pictures, video_pictures
from runtime.prompt import ImagePart
from runtime.tiling import TilingSpec
from runtime.types import Frame

RGB = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
TILED = TilingSpec("dynamic", 32, 2, max_tiles=4)


@pytest.mark.parametrize("wrap", [lambda rgb: rgb, lambda rgb: Frame(rgb, 0, 0), lambda rgb: rgb[:]])
def test_pixels_are_copied_from_the_caller(wrap: object) -> None:
    mine = RGB.copy()
    (taken,) = take_pictures([wrap(mine)], None, "rgb", video_frames=4).images
    mine[:] = 0
    np.testing.assert_array_equal(taken, RGB)


def test_the_same_object_is_taken_once() -> None:
    first, second, other = take_pictures([RGB, RGB, RGB.copy()], None, "rgb", video_frames=4).images
    assert first is second and other is not first


def test_frames_with_the_same_pixels_are_one_picture() -> None:
    first, second = take_pictures([Frame(RGB, 0, 0), Frame(RGB, 5, 1)], None, "rgb", video_frames=4).images
    assert first is second


def test_frames_of_a_video_stand_behind_the_images() -> None:
    video = [np.full((2, 2, 3), index, np.uint8) for index in range(10)]
    taken = take_pictures([RGB], video, "rgb", video_frames=3)
    assert [int(frame[0, 0, 0]) for frame in taken.frames] == [0, 4, 9]
    np.testing.assert_array_equal(taken.images, [RGB])
    assert taken.parts(3) == [ImagePart(3), *(ImagePart(index, frame=True) for index in (4, 5, 6))]


def test_a_video_without_frames_and_one_that_is_missing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="without frames"):
        video_pictures([], 4)
    with pytest.raises(SourceError, match="nothing"):
        video_pictures(tmp_path / "nothing.mp4", 4)


def test_pictures_of_one_message_are_tiled_together_and_of_different_messages_apart() -> None:
    wide = np.zeros((32, 96, 3), np.uint8)
    together = lay_out(Shown([wide, RGB], []), TILED, [[0, 1]])
    assert [picture.layout.num_tiles for picture in together] == [1, 1]
    apart = lay_out(Shown([wide, RGB], []), TILED, [[0], [1]])
    assert apart[0].layout.num_tiles > 1


def test_frames_are_never_tiled_and_do_not_keep_an_image_from_it() -> None:
    wide = np.zeros((32, 96, 3), np.uint8)
    image, *frames = lay_out(Shown([wide], [wide, wide]), TILED, [[0]])
    assert image.layout.num_tiles > 1
    assert [frame.layout.num_tiles for frame in frames] == [1, 1] and frames[0] is frames[1]


def test_same_array_becomes_one_picture_unless_its_layout_differs() -> None:
    wide = np.zeros((32, 96, 3), np.uint8)
    first, second = lay_out(Shown([wide, wide], []), TILED, [[0, 1]])
    assert first is second
    alone, paired, again = lay_out(Shown([wide, wide, wide], []), TILED, [[0], [1, 2]])
    assert paired is again and alone is not paired
