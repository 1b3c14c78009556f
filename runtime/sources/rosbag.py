"""``rosbag://``: the images of a recording of ROS 1 (``.bag``) or ROS 2 (a directory, ``.mcap``, ``.db3``).

The package ``rosbags`` reads the container. The messages are decoded here, field by field: a bag brings its own type
definitions along, and code that is generated from a stranger's file is not wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np

from runtime.errors import ImageError, SourceError
from runtime.sources.opencv import MAX_FRAME_PIXELS, load_cv2
from runtime.sources.ros_message import CompressedPicture, RawPicture, read_compressed, read_image
from runtime.sources.source import Clock, FrameSource
from runtime.sources.uri import SourceUri
from runtime.types import Frame, ImageArray

PARAMETERS = ("topic",)
_READERS: dict[str, Callable[[bytes, bool], RawPicture | CompressedPicture]] = {
    "sensor_msgs/msg/Image": read_image,
    "sensor_msgs/msg/CompressedImage": read_compressed,
}
_LONGEST_PAUSE_NS = 1_000_000_000
_DAMAGED = "play it with ros2 bag, or record it again"


class RosbagSource(FrameSource):
    """The images of one topic in the order in which they were recorded; ``seq`` counts them from 0, over loops too.

    ``topic`` of the URI is needed where several topics have images. Accepted are rgb8, bgr8, rgba8, bgra8, mono8, nv12,
    yuv422 (UYVY) and yuv422_yuy2, and compressed JPEG and PNG. A message whose numbers do not fit its data raises
    ImageError when its turn comes, and reading on gives the one after it. Without ``every_frame`` they come as they
    were recorded, pauses cut to 1 s. Raises SourceError for a bag that cannot be read.
    """

    def __init__(
        self,
        uri: SourceUri,
        *,
        every_frame: bool = False,
        loop: bool = False,
        clock: Clock | None = None,
        max_pixels: int = MAX_FRAME_PIXELS,
    ) -> None:
        super().__init__(uri.name, live=not every_frame, clock=clock)
        given = uri.parameters()
        unknown = sorted(set(given) - set(PARAMETERS))
        if unknown:
            raise SourceError(
                f"{uri.name}: unknown parameter {unknown[0]!r}", hint=f"known are {', '.join(PARAMETERS)}"
            )
        self._path = _path_of(uri)
        self._topic = given.get("topic")
        self._loop = loop
        self._max_pixels = max_pixels
        self._seq = 0
        self._last: tuple[int, int] | None = None  # the last message: when it was recorded, when it was due here
        self._reader = self._open()
        self._messages = self._round()

    def _next(self) -> Frame | None:
        message = self._read()
        if message is None and self._loop and self._seq:
            self._messages, self._last = self._round(), None
            message = self._read()
        if message is None:
            return None
        kind, recorded_ns, data = message
        seq, self._seq = self._seq, self._seq + 1
        rgb = self._decoded(kind, data, seq)
        return Frame(rgb, self._due(recorded_ns), seq, "arrival", self.name)

    def _release(self) -> None:
        self._reader.close()

    def _open(self) -> Any:
        rosbags = _load_rosbags()
        kind = rosbags.rosbag1 if self._path.suffix == ".bag" else rosbags.rosbag2
        try:
            reader = kind.Reader(self._path)
            reader.open()
        except Exception as problem:  # parsers of a stranger's file raise anything
            raise SourceError(f"{self.name}: not a bag that can be read", hint=_DAMAGED) from problem
        return reader

    def _round(self) -> Iterator[tuple[str, int, bytes]]:
        found = [connection for connection in self._reader.connections if connection.msgtype in _READERS]
        topics = sorted({connection.topic for connection in found})
        topic = self._topic if self._topic is not None else (topics[0] if len(topics) == 1 else None)
        if topic not in topics:
            what = f"no images on the topic {topic!r}" if topic else f"{len(topics)} topics have images"
            hint = f"topics with images: {', '.join(topics)}" if topics else "record sensor_msgs/Image"
            raise SourceError(f"{self.name}: {what}", hint=f"{hint}; choose with ?topic=…")
        chosen = [connection for connection in found if connection.topic == topic]
        for connection, recorded_ns, data in self._reader.messages(connections=chosen):
            yield connection.msgtype, recorded_ns, data

    def _read(self) -> tuple[str, int, bytes] | None:
        try:
            return next(self._messages, None)
        except SourceError:
            raise
        except Exception as problem:  # parsers of a stranger's file raise anything
            raise SourceError(f"{self.name}: the bag breaks off after {self._seq} images", hint=_DAMAGED) from problem

    def _decoded(self, kind: str, data: bytes, seq: int) -> ImageArray:
        try:
            picture = _READERS[kind](data, self._path.suffix == ".bag")
            if isinstance(picture, CompressedPicture):
                return _compressed(picture, self._max_pixels)
            if picture.width * picture.height > self._max_pixels:
                raise ImageError(f"{picture.width}x{picture.height} px, the limit is {self._max_pixels:,} pixels")
            return _raw(picture)
        except ImageError as problem:
            raise ImageError(f"{self.name}: image {seq}: {problem.message}") from problem

    def _due(self, recorded_ns: int) -> int:
        """Wait until this message is due and return the time."""
        now = self._clock.now_ns()
        if not self.live:
            return now
        then, due = self._last or (recorded_ns, now)
        due += min(max(0, recorded_ns - then), _LONGEST_PAUSE_NS)  # times may jump in both directions
        self._last = (recorded_ns, max(due, now - _LONGEST_PAUSE_NS))
        self._clock.wait_until(due, self._stop)
        return self._clock.now_ns()


def _path_of(uri: SourceUri) -> Path:
    parts = urlsplit(uri.text)
    if parts.netloc:
        raise SourceError(f"{uri.name}: names a path, not the host {parts.netloc!r}", hint="three slashes: rosbag:///…")
    path = Path(unquote(parts.path))
    if not path.exists():
        raise SourceError(f"{path}: there is no such bag", hint="check the path")
    return path


def _load_rosbags() -> Any:
    try:
        import rosbags.rosbag1
        import rosbags.rosbag2
    except ImportError as problem:
        raise SourceError(
            f"bags need the package rosbags, which cannot be imported ({problem})",
            hint="pip install 'jetson-vlm[rosbag]'",
        ) from problem
    return rosbags


def _compressed(picture: CompressedPicture, max_pixels: int) -> ImageArray:
    from runtime.images import load_image

    rgb = load_image(picture.data)
    if rgb.shape[0] * rgb.shape[1] > max_pixels:
        raise ImageError(f"{rgb.shape[1]}x{rgb.shape[0]} px, the limit is {max_pixels:,} pixels")
    return rgb


def _raw(picture: RawPicture) -> ImageArray:
    """RGB u8 [height, width, 3] of a message whose numbers fit its data."""
    rows = picture.rows
    flat = np.frombuffer(picture.data, np.uint8, rows * picture.step).reshape(rows, picture.step)
    flat = flat[:, : picture.row_bytes]
    if picture.encoding in ("nv12", "yuv422", "yuv422_yuy2"):
        return _from_yuv(picture, flat)
    pixels = flat.reshape(picture.height, picture.width, -1)
    if picture.encoding == "mono8":
        return np.repeat(pixels, 3, axis=2)
    channels = [2, 1, 0] if picture.encoding.startswith("bgr") else [0, 1, 2]
    return np.ascontiguousarray(pixels[:, :, channels])


def _from_yuv(picture: RawPicture, flat: np.ndarray[Any, np.dtype[np.uint8]]) -> ImageArray:
    cv2 = load_cv2()
    if picture.encoding == "nv12":
        rgb: ImageArray = cv2.cvtColor(np.ascontiguousarray(flat), cv2.COLOR_YUV2RGB_NV12)
        return rgb
    code = cv2.COLOR_YUV2RGB_UYVY if picture.encoding == "yuv422" else cv2.COLOR_YUV2RGB_YUY2
    pairs = np.ascontiguousarray(flat).reshape(picture.height, picture.width, 2)
    converted: ImageArray = cv2.cvtColor(pairs, code)
    return converted
