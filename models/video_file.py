"""Frames of a video file, evenly spread, through OpenCV; which frames stand for a video."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from runtime.errors import InputError

_DIRECTORY_HINT = "hand in a directory of frames or the frames: Video([frame, ...])"


def frame_indices(count: int, wanted: int) -> list[int]:
    """``wanted`` indices spread evenly over ``count`` frames, first and last among them; short videos repeat frames."""
    if count < 1:
        raise InputError("a video without frames")
    return [int(index) for index in np.round(np.linspace(0, count - 1, wanted))]


def video_frames(path: Path, wanted: int) -> list[PIL.Image.Image]:
    """Exactly ``wanted`` RGB frames of a video file, first and last among them.

    The file is read from its start, since seeking is exact in few formats. A container may declare more frames than it
    holds: then they are spread over those that can be read. Raises InputError without OpenCV, and for a file that it
    cannot read.
    """
    try:
        import cv2  # here alone, so that nothing else needs it
    except ImportError as error:
        raise InputError(
            f"{path} is a video file, which OpenCV reads, and OpenCV is not installed",
            hint=f"pip install opencv-python-headless, or {_DIRECTORY_HINT}",
        ) from error
    declared = int(_opened(cv2, path).get(cv2.CAP_PROP_FRAME_COUNT))
    if declared > 0:
        frames, count = _read(cv2, path, frame_indices(declared, wanted))
        if len(frames) == wanted:
            return frames
    else:
        _, count = _read(cv2, path, ())
    if count == 0:
        raise InputError(f"{path} cannot be read as a video: not one frame can be decoded", hint=_DIRECTORY_HINT)
    return _read(cv2, path, frame_indices(count, wanted))[0]


def _opened(cv2: Any, path: Path) -> Any:
    capture = cv2.VideoCapture(str(path))
    if not capture.isOpened():
        raise InputError(f"{path} cannot be read as a video", hint=_DIRECTORY_HINT)
    return capture


def _read(cv2: Any, path: Path, indices: Sequence[int]) -> tuple[list[PIL.Image.Image], int]:
    """The frames at ``indices`` (ascending) that there are, and how many were passed; without indices all are."""
    capture, frames, place = _opened(cv2, path), [], 0
    try:
        while (not indices or place <= indices[-1]) and capture.grab():
            for _ in range(sum(index == place for index in indices)):
                ok, bgr = capture.retrieve()
                if ok:
                    frames.append(PIL.Image.fromarray(np.ascontiguousarray(bgr[..., ::-1])))
            place += 1
    finally:
        capture.release()
    return frames, place
