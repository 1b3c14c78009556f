"""Pictures and videos of a prompt, and the frames that stand for a video."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from PIL import UnidentifiedImageError

from models.tiling import to_rgb
from runtime.errors import ImageError, InputError

FRAME_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff")


@dataclass(frozen=True)
class Image:
    """A picture of a prompt: a path to a file. Pillow images can be put into a prompt as they are."""

    path: str | Path


@dataclass(frozen=True)
class Video:
    """A video of a prompt: a directory of frames, an animated picture file, or the frames themselves (Pillow, u8
    [H, W, 3]).
    """

    source: str | Path | Sequence[Any]


def load_image(part: Any) -> PIL.Image.Image:
    """An upright RGB picture from an ``Image`` part, a Pillow image or u8 [H, W, 3]. Raises ImageError."""
    if isinstance(part, PIL.Image.Image):
        return to_rgb(part)
    if isinstance(part, np.ndarray):
        if part.dtype != np.uint8 or part.ndim != 3 or part.shape[2] != 3:
            raise ImageError(f"array of {part.dtype} {part.shape}: u8 [H, W, 3] in RGB order is needed")
        return PIL.Image.fromarray(part)
    if isinstance(part, Image):
        return _open(Path(part.path))
    raise InputError(f"{type(part).__name__} is no picture", hint="models.media.Image(path) or a Pillow image")


def _open(path: Path) -> PIL.Image.Image:
    try:
        with PIL.Image.open(path) as opened:
            return to_rgb(opened)
    except (OSError, UnidentifiedImageError) as error:
        raise ImageError(f"{path} cannot be read as a picture: {error}") from error


def frame_indices(count: int, wanted: int) -> list[int]:
    """``wanted`` indices spread evenly over ``count`` frames, first and last among them; short videos repeat frames."""
    if count < 1:
        raise InputError("a video without frames")
    return [int(index) for index in np.round(np.linspace(0, count - 1, wanted))]


def load_video(part: Video, num_frames: int) -> list[PIL.Image.Image]:
    """Exactly ``num_frames`` frames, evenly spread.

    A frame that cannot be read is replaced by the nearest one before it (else after it), so the count always agrees
    with the prompt. Raises InputError when no frame can be read.
    """
    source = part.source
    if not isinstance(source, (str, Path)):
        return [load_image(source[index]) for index in frame_indices(len(source), num_frames)]
    path = Path(source)
    if path.is_dir():
        return _directory_frames(path, num_frames)
    return _animation_frames(path, num_frames)


def _directory_frames(path: Path, num_frames: int) -> list[PIL.Image.Image]:
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in FRAME_SUFFIXES)
    if not files:
        raise InputError(f"{path} holds no frames", hint="frames end in " + ", ".join(FRAME_SUFFIXES))
    return [_nearest(files, index) for index in frame_indices(len(files), num_frames)]


def _nearest(files: list[Path], index: int) -> PIL.Image.Image:
    for file in [*reversed(files[: index + 1]), *files[index + 1 :]]:
        try:
            return _open(file)
        except ImageError as error:
            problem = error
    raise InputError(f"none of the {len(files)} frames can be read, the last one: {problem.message}")


def _animation_frames(path: Path, num_frames: int) -> list[PIL.Image.Image]:
    try:
        with PIL.Image.open(path) as opened:
            frames = []
            for index in frame_indices(getattr(opened, "n_frames", 1), num_frames):
                opened.seek(index)
                frames.append(to_rgb(opened.copy()))
            return frames
    except (OSError, UnidentifiedImageError) as error:
        raise InputError(
            f"{path} cannot be read as frames: {error}",
            hint="hand in a directory of frames or the frames: Video([frame, ...])",
        ) from error


def is_picture(part: Any) -> bool:
    """Whether a prompt's part is a picture."""
    return isinstance(part, (Image, PIL.Image.Image, np.ndarray))
