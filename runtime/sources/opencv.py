"""Reading video files through OpenCV, which is optional and imported here alone, when a video is opened."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from runtime.errors import SourceError
from runtime.sources.containers import HEAD_BYTES, container_of
from runtime.types import ImageArray

MAX_FRAME_PIXELS = 36_000_000  # 8192 x 4352, the largest H.265 level
_FPS_RANGE = (0.1, 1000.0)
_FPS_UNKNOWN = 25.0
_DAMAGED = "play it with another program; if that fails too, copy or convert it again"


class Capture:
    """One pass over a video file, frame by frame. Rotation of the container is applied.

    threads: that decode, each with frames of its own in memory; 0: as many as there are cores.
    """

    def __init__(self, path: Path, max_pixels: int = MAX_FRAME_PIXELS, threads: int = 0) -> None:
        self._path = path
        self._threads = threads
        self._max_pixels = max_pixels
        self._cv2 = load_cv2()
        self._capture = self._open()
        self.fps = self._rate()
        # What the container says; often an estimate, so nothing is decided by it.
        self.declared_frames = int(max(0.0, self._number(self._cv2.CAP_PROP_FRAME_COUNT)))

    def grab(self) -> bool:
        """Go to the next frame; False at the end."""
        try:
            return bool(self._capture.grab())
        except self._cv2.error as problem:
            raise SourceError(f"{self._path}: the video decoder failed", hint=_DAMAGED) from problem

    def retrieve(self) -> ImageArray | None:
        """The frame that was grabbed, RGB u8 [H, W, 3]; None when it cannot be decoded."""
        try:
            ok, bgr = self._capture.retrieve()
            if not ok or bgr is None or bgr.size == 0:
                return None
            rgb: ImageArray = self._cv2.cvtColor(bgr, self._cv2.COLOR_BGR2RGB)
        except self._cv2.error:
            return None
        return rgb

    def close(self) -> None:
        """Give back the decoder and the file."""
        self._capture.release()

    def _open(self) -> Any:
        for backend in (self._cv2.CAP_FFMPEG, self._cv2.CAP_ANY):
            capture = self._cv2.VideoCapture(str(self._path), backend, self._options(backend))
            if capture.isOpened():
                return self._checked(capture)
            capture.release()
        raise SourceError(
            f"{self._path}: the video cannot be opened (damaged, cut short or of unknown coding)", hint=_DAMAGED
        )

    def _options(self, backend: int) -> list[int]:
        threads = getattr(self._cv2, "CAP_PROP_N_THREADS", None)  # OpenCV 4.8 has it
        if threads is None or not self._threads or backend != self._cv2.CAP_FFMPEG:
            return []
        return [int(threads), self._threads]

    def _checked(self, capture: Any) -> Any:
        width, height = (int(capture.get(n)) for n in (self._cv2.CAP_PROP_FRAME_WIDTH, self._cv2.CAP_PROP_FRAME_HEIGHT))
        if width * height > self._max_pixels:
            capture.release()
            raise SourceError(
                f"{self._path}: frames of {width}x{height} px, the limit is {self._max_pixels:,} pixels",
                hint="scale the video down first",
            )
        capture.set(self._cv2.CAP_PROP_ORIENTATION_AUTO, 1)
        return capture

    def _rate(self) -> float:
        fps = self._number(self._cv2.CAP_PROP_FPS)
        return fps if _FPS_RANGE[0] <= fps <= _FPS_RANGE[1] else _FPS_UNKNOWN

    def _number(self, what: int) -> float:
        value = float(self._capture.get(what))
        return value if math.isfinite(value) else 0.0


def load_cv2() -> Any:
    """Import OpenCV. Raises SourceError that names the extra."""
    try:
        import cv2
    except ImportError as problem:
        raise SourceError(
            f"videos need OpenCV, which cannot be imported ({problem})",
            hint="pip install 'jetson-vlm[video]' (opencv-python or opencv-python-headless)",
        ) from problem
    return cv2


def check_video(path: Path) -> None:
    """Raises SourceError for anything that is not a regular file with a known video container."""
    if not path.is_file():
        raise SourceError(f"{path}: there is no such video file", hint="check the path")
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if container_of(head) is None:
        raise SourceError(
            f"{path}: {'an empty file' if not head else 'not a video of a known container'}",
            hint="accepted are MP4, MOV, MKV, WebM, AVI, MPEG, TS, OGG, FLV, ASF, IVF and Y4M",
        )
