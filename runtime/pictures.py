"""Images and videos of a request as pixels, and their layouts: stages "capture" and "layout" of a request."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from runtime.errors import InputError
from runtime.images import load_image
from runtime.prompt import ImagePart
from runtime.request import Picture
from runtime.sources import sample_video
from runtime.sources.video import frame_indices
from runtime.tiling import TileLayout, TilingSpec, layouts_for, plain_layout
from runtime.types import Frame, ImageArray

ImageLike: TypeAlias = Any  # what runtime.images.load_image takes
VideoLike: TypeAlias = "str | os.PathLike[str] | Sequence[ImageLike]"
Color = Literal["rgb", "bgr"]

MAX_IMAGES = 256


@dataclass(frozen=True, slots=True, eq=False)
class Shown:
    """The pixels of what a message shows, u8 [H, W, 3] each: its images, and the frames of its video behind them."""

    images: list[ImageArray]
    frames: list[ImageArray]

    def parts(self, first: int) -> list[ImagePart]:
        """Their places, numbered from ``first``."""
        still = [ImagePart(first + index) for index in range(len(self.images))]
        return still + [ImagePart(first + len(still) + index, frame=True) for index in range(len(self.frames))]


def take_pictures(images: Sequence[ImageLike], video: VideoLike | None, color: Color, *, video_frames: int) -> Shown:
    """The pixels of all images of a request and of the frames of its video.

    The result shares no memory with what was passed, so that a caller may use its buffers again. The same object twice
    gives the same array twice. Raises ImageError, SourceError, and InputError for more than 256 images.
    """
    if isinstance(images, (str, bytes, os.PathLike, np.ndarray, Frame)):
        kind = type(images).__name__
        raise InputError(f"images is one {kind}: a list is needed", hint="images=[picture]")
    count = len(images) + (0 if video is None else video_frames)
    if count > MAX_IMAGES:
        raise InputError(f"{count} images in one request, the most is {MAX_IMAGES}")
    frames = [] if video is None else video_pictures(video, video_frames)
    taken: dict[int, ImageArray] = {}
    for image in [*images, *frames]:
        if _identity(image) not in taken:
            taken[_identity(image)] = _own(load_image(image, color=color), image)
    return Shown([taken[_identity(image)] for image in images], [taken[_identity(frame)] for frame in frames])


def lay_out(shown: Shown, tiling: TilingSpec, together: Sequence[Sequence[int]]) -> list[Picture]:
    """Decide the tiles of each picture; frames are never tiled.

    ``together`` names the images of each message: their number decides whether they are tiled. The same array with the
    same layout becomes one `Picture`, which is seen once.
    """
    layouts: dict[int, TileLayout] = {}
    for group in together:
        found = layouts_for([_size(shown.images[index]) for index in group], tiling)
        layouts.update(zip(group, found, strict=True))
    made: dict[tuple[int, TileLayout], Picture] = {}
    placed = [(rgb, layouts[index]) for index, rgb in enumerate(shown.images)]
    placed += [(rgb, plain_layout(*_size(rgb), tiling)) for rgb in shown.frames]
    return [made.setdefault((id(rgb), layout), Picture(rgb, layout)) for rgb, layout in placed]


def video_pictures(video: VideoLike, count: int) -> list[ImageLike]:
    """``count`` frames of a video at equal distances, first and last among them; of a shorter one some come twice."""
    if isinstance(video, (str, os.PathLike)):
        return list(sample_video(video, count))
    if len(video) == 0:
        raise InputError("video is a list without frames")
    return [video[index] for index in frame_indices(len(video), count)]


def _size(rgb: ImageArray) -> tuple[int, int]:
    return rgb.shape[0], rgb.shape[1]


def _identity(image: ImageLike) -> int:
    """Two frames with the same pixels are one picture: a short video gives some of its frames twice."""
    return id(image.rgb) if isinstance(image, Frame) else id(image)


def _own(rgb: ImageArray, given: ImageLike) -> ImageArray:
    """``rgb``, or a copy where its memory may belong to the caller."""
    passed_on = rgb is given or (isinstance(given, Frame) and rgb is given.rgb)
    return rgb if rgb.flags.owndata and not passed_on else rgb.copy()
