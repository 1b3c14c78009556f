"""Pictures and videos of a prompt, and the frames that stand for a video."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from PIL import UnidentifiedImageError

from models.tiling import to_rgb
from models.video_file import frame_indices, video_frames
from runtime.errors import ImageError, InputError

FRAME_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff")


@dataclass(frozen=True)
class Image:
    """A picture of a prompt: a path to a file. Pillow images can be put into a prompt as they are."""

    path: str | Path


@dataclass(frozen=True)
class Video:
    """A video of a prompt: a video file (OpenCV reads it), an animated picture file, a directory of frames, or the
    frames themselves (Pillow, u8 [H, W, 3]).
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


def load_video(part: Video, num_frames: int) -> list[PIL.Image.Image]:
    """Exactly ``num_frames`` frames, evenly spread.

    A frame that cannot be read is replaced by the nearest one before it (else after it), so the count always agrees
    with the prompt. Raises InputError when no frame can be read.
    """
    source = part.source
    if not isinstance(source, (str, Path)):
        return _nearest_frames(len(source), num_frames, lambda index: load_image(source[index]))
    path = Path(source)
    if path.is_dir():
        return _directory_frames(path, num_frames)
    try:
        with PIL.Image.open(path) as opened:
            return _animation_frames(opened, path, num_frames)
    except UnidentifiedImageError:
        return video_frames(path, num_frames)
    except OSError as error:
        raise InputError(f"{path} cannot be read as frames: {error}", hint="check the path") from error


def _directory_frames(path: Path, num_frames: int) -> list[PIL.Image.Image]:
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in FRAME_SUFFIXES)
    if not files:
        raise InputError(f"{path} holds no frames", hint="frames end in " + ", ".join(FRAME_SUFFIXES))
    return _nearest_frames(len(files), num_frames, lambda index: _open(files[index]))


def _animation_frames(opened: PIL.Image.Image, path: Path, num_frames: int) -> list[PIL.Image.Image]:
    def read(index: int) -> PIL.Image.Image:
        try:
            opened.seek(index)
            return to_rgb(opened.copy())
        except (OSError, EOFError, SyntaxError, ValueError) as error:  # what Pillow's readers raise on damage
            raise ImageError(f"frame {index} of {path} cannot be read: {error}") from error

    return _nearest_frames(getattr(opened, "n_frames", 1), num_frames, read)


def _nearest_frames(count: int, wanted: int, read: Callable[[int], PIL.Image.Image]) -> list[PIL.Image.Image]:
    """``wanted`` frames of ``count``; one that ``read`` cannot give gives way to the nearest before, else after it."""
    known: dict[int, PIL.Image.Image | None] = {}
    problem = ""
    frames = []
    for index in frame_indices(count, wanted):
        for candidate in [*range(index, -1, -1), *range(index + 1, count)]:
            if candidate not in known:
                try:
                    known[candidate] = read(candidate)
                except ImageError as error:
                    known[candidate], problem = None, error.message
            frame = known[candidate]
            if frame is not None:
                frames.append(frame)
                break
        else:
            raise InputError(f"none of the {count} frames can be read, the last one: {problem}")
    return frames


def is_picture(part: Any) -> bool:
    """Whether a prompt's part is a picture."""
    return isinstance(part, (Image, PIL.Image.Image, np.ndarray))
