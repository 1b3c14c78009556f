"""Where frames come from: pictures, videos, synthetic scenes, and cameras that other packages bring.

    with open_source("film.mp4") as source:
        for frame in source:          # the newest one whenever you are ready for it
            look_at(frame.rgb)

| URI | what comes | without ``every_frame`` |
|---|---|---|
| ``photo.jpg``, ``"photos/*.png"``, ``photos/`` | each picture once | the same: pictures wait |
| ``film.mp4``, ``file:///data/film.mp4`` | each frame | at the file's speed, newest frame wins |
| ``synthetic://?seed=7&width=640&height=480&fps=10&frames=100`` | a rendered film | at its fps, newest frame wins |
| ``rosbag:///data/run1?topic=/camera/image`` | the images of a ROS 1 or 2 bag | as recorded, newest frame wins |
| ``<scheme>://…`` (csi, v4l2, rtsp …; ``/dev/video0`` is v4l2) | what its package says | newest frame wins |

A package brings a scheme by an entry point of the group ``vlm.sources``: its name is the scheme, its object is a
function ``(uri: str, options: SourceOptions) -> Source``.
"""

from __future__ import annotations

import os
from pathlib import Path

from runtime.errors import SourceError
from runtime.images.files import picture_format
from runtime.sources.containers import HEAD_BYTES, container_of
from runtime.sources.newest import NewestFrames
from runtime.sources.opencv import MAX_FRAME_PIXELS
from runtime.sources.pictures import PictureSource, is_glob, picture_paths
from runtime.sources.registry import SourceOptions, open_registered
from runtime.sources.rosbag import RosbagSource
from runtime.sources.source import Clock, FrameSource, Source
from runtime.sources.synthetic import SyntheticSource
from runtime.sources.uri import SourceUri, parse_uri, without_credentials
from runtime.sources.video import VideoSource, sample_video

__all__ = [
    "Clock",
    "FrameSource",
    "NewestFrames",
    "Source",
    "SourceOptions",
    "open_source",
    "open_unbuffered",
    "sample_video",
    "without_credentials",
]


def open_source(
    uri: str | os.PathLike[str], *, every_frame: bool = False, loop: bool = False, clock: Clock | None = None
) -> Source:
    """Open a source by its URI or path.

    every_frame: each frame waits until it is taken; without it, videos, synthetic scenes and cameras are read on a
    thread of their own and a reader gets the newest frame. loop: begin again at the end. clock: for tests. Raises
    SourceError that names the source, without its credentials.
    """
    raw = open_unbuffered(uri, every_frame=every_frame, loop=loop, clock=clock)
    return NewestFrames(raw) if raw.live and not every_frame else raw


def open_unbuffered(
    uri: str | os.PathLike[str],
    *,
    every_frame: bool = False,
    loop: bool = False,
    clock: Clock | None = None,
    max_pixels: int = MAX_FRAME_PIXELS,
    threads: int = 0,
) -> Source:
    """`open_source` for a reader that keeps up and has a place for the newest frame itself: no thread, no mailbox.

    max_pixels: videos with larger frames are refused before one is delivered. threads: that decode a video, each with
    frames of its own in memory; 0: as many as there are cores.
    """
    parsed = parse_uri(uri)
    if parsed.scheme == "file":
        return _picture(parsed, loop, clock) or VideoSource(
            Path(parsed.path),
            parsed.name,
            every_frame=every_frame,
            loop=loop,
            clock=clock,
            max_pixels=max_pixels,
            threads=threads,
        )
    if parsed.scheme == "synthetic":
        return SyntheticSource(parsed, every_frame=every_frame, loop=loop, clock=clock)
    if parsed.scheme == "rosbag":
        return RosbagSource(parsed, every_frame=every_frame, loop=loop, clock=clock, max_pixels=max_pixels)
    return open_registered(parsed, SourceOptions(every_frame=every_frame, loop=loop))


def _picture(uri: SourceUri, loop: bool, clock: Clock | None) -> Source | None:
    """A source of pictures; None for a video. Raises SourceError for a file that is neither."""
    path = Path(uri.path)
    if path.is_dir() or is_glob(str(path)):
        return PictureSource(uri.name, picture_paths(str(path)), loop=loop, clock=clock)
    head = _head(path)
    if picture_format(head):
        return PictureSource(uri.name, [path], loop=loop, clock=clock)
    if container_of(head):
        return None
    what = "an empty file" if not head else "neither a picture nor a video of a known format"
    raise SourceError(
        f"{path}: {what}", hint="pictures: JPEG, PNG, WebP, BMP, GIF; videos: MP4, MKV, AVI, MPEG and others"
    )


def _head(path: Path) -> bytes:
    if not path.exists():
        raise SourceError(f"{path}: there is no such file", hint="check the path; a glob has to be quoted")
    if not path.is_file():
        raise SourceError(
            f"{path}: not a regular file", hint="cameras are named by URI, for instance v4l2:///dev/video0"
        )
    try:
        with path.open("rb") as file:
            return file.read(HEAD_BYTES)
    except OSError as problem:
        raise SourceError(f"{path}: cannot be read ({problem.strerror})", hint="check its permissions") from problem
