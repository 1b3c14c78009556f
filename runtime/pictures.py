"""Images and videos of a request as pixels, and their layouts: stages "capture" and "layout" of a request."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import numpy as np

from runtime.errors import InputError
from runtime.images import load_image
from runtime.pipeline import Picture
from runtime.sources import sample_video
from runtime.sources.video import frame_indices
from runtime.tiling import TileLayout, TilingSpec, layouts_for
from runtime.types import Frame, ImageArray

ImageLike: TypeAlias = Any  # what runtime.images.load_image takes
VideoLike: TypeAlias = "str | os.PathLike[str] | Sequence[ImageLike]"
Color = Literal["rgb", "bgr"]

MAX_IMAGES = 256


def take_pictures(
    images: Sequence[ImageLike], video: VideoLike | None, color: Color, *, video_frames: int
) -> list[ImageArray]:
    """Pixels u8 [H, W, 3] of all images of a request, the frames of its video behind the others.

    The result shares no memory with what was passed, so that a caller may use its buffers again. The same object twice
    gives the same array twice. Raises ImageError, SourceError, and InputError for more than 256 images.
    """
    if isinstance(images, (str, bytes, os.PathLike, np.ndarray, Frame)):
        kind = type(images).__name__
        raise InputError(f"images is one {kind}: a list is needed", hint="images=[picture]")
    count = len(images) + (0 if video is None else video_frames)
    if count > MAX_IMAGES:
        raise InputError(f"{count} images in one request, the most is {MAX_IMAGES}")
    shown = [*images, *([] if video is None else video_pictures(video, video_frames))]
    taken: dict[int, ImageArray] = {}
    for image in shown:
        if _identity(image) not in taken:
            taken[_identity(image)] = _own(load_image(image, color=color), image)
    return [taken[_identity(image)] for image in shown]


def lay_out(shown: Sequence[ImageArray], tiling: TilingSpec, together: Sequence[Sequence[int]]) -> list[Picture]:
    """Decide the tiles of each picture; ``together`` names those of each message, whose number decides the tiling.

    The same array with the same layout becomes one `Picture`, which is seen once.
    """
    made: dict[tuple[int, TileLayout], Picture] = {}
    placed: dict[int, Picture] = {}
    for group in together:
        layouts = layouts_for([(shown[index].shape[0], shown[index].shape[1]) for index in group], tiling)
        for index, layout in zip(group, layouts, strict=True):
            rgb = shown[index]
            placed[index] = made.setdefault((id(rgb), layout), Picture(rgb, layout))
    return [placed[index] for index in range(len(shown))]


def video_pictures(video: VideoLike, count: int) -> list[ImageLike]:
    """``count`` frames of a video at equal distances, first and last among them; of a shorter one some come twice."""
    if isinstance(video, (str, os.PathLike)):
        return list(sample_video(video, count))
    if len(video) == 0:
        raise InputError("video is a list without frames")
    return [video[index] for index in frame_indices(len(video), count)]


def _identity(image: ImageLike) -> int:
    """Two frames with the same pixels are one picture: a short video gives some of its frames twice."""
    return id(image.rgb) if isinstance(image, Frame) else id(image)


def _own(rgb: ImageArray, given: ImageLike) -> ImageArray:
    """``rgb``, or a copy where its memory may belong to the caller."""
    passed_on = rgb is given or (isinstance(given, Frame) and rgb is given.rgb)
    return rgb if rgb.flags.owndata and not passed_on else rgb.copy()
