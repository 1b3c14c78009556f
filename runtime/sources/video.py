"""Video files as a source, and a fixed number of frames of one for a prompt."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np

from runtime.errors import InputError, SourceError
from runtime.sources.containers import missing_bytes
from runtime.sources.opencv import MAX_FRAME_PIXELS, Capture, check_video
from runtime.sources.pictures import picture_paths
from runtime.sources.source import Clock, FrameSource, Pace
from runtime.sources.uri import parse_uri
from runtime.types import Frame, ImageArray

_log = logging.getLogger(__name__)

_COUNT_SLACK = 0.02  # containers estimate their number of frames
MAX_SAMPLED_FRAMES = 4096


class VideoSource(FrameSource):
    """The frames of a video file in order; ``seq`` counts from 0 and goes on in the next round of a loop.

    ``every_frame=False`` plays at the file's own speed (25 fps where it names none): live, for a reader who wants the
    newest frame. A file that breaks off gives its frames up to there and then raises SourceError once, where the
    container tells (AVI, MKV, WebM; a cut MP4 without its index cannot be opened at all); elsewhere a short video ends
    with a warning in the log. A file without a readable frame raises SourceError when it is opened.
    """

    def __init__(
        self,
        path: Path,
        name: str,
        *,
        every_frame: bool = True,
        loop: bool = False,
        clock: Clock | None = None,
        max_pixels: int = MAX_FRAME_PIXELS,
        threads: int = 0,
    ) -> None:
        super().__init__(name, live=not every_frame, clock=clock)
        check_video(path)
        self._path = path
        self._limits = (max_pixels, threads)
        self._loop = loop
        self._missing_bytes = missing_bytes(path)
        self._capture: Capture | None = Capture(path, *self._limits)
        self._fps = self._capture.fps
        self._pace = None if every_frame else Pace(self._fps, self._clock)
        self._seq = 0
        self._round_start = 0
        self._pending = self._read()
        if self._pending is None:
            self._capture.close()
            raise SourceError(f"{name}: a video without a readable frame", hint="play it with another program")

    @property
    def fps(self) -> float | None:
        """As the container says; 25 where it says nothing."""
        return self._fps

    def _next(self) -> Frame | None:
        pending = self._pending or self._read()
        self._pending = None
        if pending is None:
            return self._next_round()
        seq, rgb = pending
        t_ns = self._clock.now_ns() if self._pace is None else self._pace.wait(self._stop)
        return Frame(rgb, t_ns, seq, "arrival", self.name)

    def _read(self) -> tuple[int, ImageArray] | None:
        """The next frame that can be decoded, with its number."""
        while self._capture is not None and self._capture.grab():
            seq, self._seq = self._seq, self._seq + 1
            rgb = self._capture.retrieve()
            if rgb is not None:
                return seq, rgb
            _log.warning("%s: frame %d cannot be decoded and is left out", self.name, seq)
        return None

    def _next_round(self) -> Frame | None:
        capture, self._capture = self._capture, None
        if capture is None:
            return None
        capture.close()
        self._check_length(self._seq - self._round_start, capture.declared_frames)
        if not self._loop or self._stop.is_set():
            return None
        self._round_start = self._seq
        self._capture = Capture(self._path, *self._limits)
        self._pending = self._read()
        return self._next() if self._pending else None

    def _check_length(self, frames: int, declared: int) -> None:
        if self._missing_bytes:
            raise SourceError(
                f"{self.name}: the video breaks off after {frames} frames, {self._missing_bytes:,} bytes are missing",
                hint="copy the file again; the frames up to here were delivered",
            )
        if frames < declared - max(1, declared * _COUNT_SLACK):
            _log.warning("%s: the video ended after %d frames, its header says %d", self.name, frames, declared)

    def _release(self) -> None:
        if self._capture is not None:
            self._capture.close()
            self._capture = None


def frame_indices(total: int, count: int) -> list[int]:
    """Which of ``total`` frames a prompt shows: ``round(linspace(0, total - 1, count))``, as VILA samples."""
    return [int(index) for index in np.round(np.linspace(0, total - 1, count))]


def sample_video(video: str | os.PathLike[str], count: int) -> list[Frame]:
    """Exactly ``count`` frames of a video file or a directory of pictures, evenly spaced, first and last among them.

    A shorter video gives some frames twice. A frame that cannot be decoded is replaced by the nearest earlier one (by
    the first readable one where there is none), so that the number always matches the prompt's placeholders. The file
    is read twice, because containers are often wrong about their number of frames; one that breaks off is sampled up to
    there.
    Raises SourceError for a video without a readable frame, InputError for a count outside 1..4096.
    """
    if not 1 <= count <= MAX_SAMPLED_FRAMES:
        raise InputError(f"{count} frames of a video, expected 1 to {MAX_SAMPLED_FRAMES}")
    path = Path(parse_uri(video).path)
    if path.is_dir():
        return _sample_pictures(path, count)
    check_video(path)
    total = _count_frames(path)
    wanted = frame_indices(total, count)
    found = _frames_at(path, set(wanted))
    if not found:
        raise SourceError(f"{path}: a video without a readable frame", hint="play it with another program")
    clock = Clock()
    return [Frame(_nearest(found, index), clock.now_ns(), index, "arrival", str(path)) for index in wanted]


def _sample_pictures(path: Path, count: int) -> list[Frame]:
    from runtime.images import load_image

    paths = picture_paths(str(path))
    wanted = frame_indices(len(paths), count)
    pictures = {index: load_image(paths[index]) for index in sorted(set(wanted))}
    clock = Clock()
    return [Frame(pictures[index], clock.now_ns(), index, "arrival", str(paths[index])) for index in wanted]


def _count_frames(path: Path) -> int:
    capture = Capture(path)
    try:
        total = 0
        while capture.grab():
            total += 1
        return total
    finally:
        capture.close()


def _frames_at(path: Path, wanted: set[int]) -> dict[int, ImageArray]:
    """The wanted frames; one that cannot be decoded is missing, and a stand-in before it is there."""
    capture = Capture(path)
    found: dict[int, ImageArray] = {}
    try:
        last: tuple[int, ImageArray] | None = None
        index = 0
        while capture.grab() and index <= max(wanted, default=-1):
            rgb = capture.retrieve()
            last = last if rgb is None else (index, rgb)
            if index in wanted and last is not None:
                found[last[0]] = last[1]
            index += 1
        if not found and last is not None:
            found[last[0]] = last[1]
        return found
    finally:
        capture.close()


def _nearest(found: dict[int, ImageArray], index: int) -> ImageArray:
    earlier = [at for at in found if at <= index]
    return found[max(earlier) if earlier else min(found)]
