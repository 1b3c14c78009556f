"""`sensor_msgs/Image` and `sensor_msgs/CompressedImage` as bytes of ROS 1 and of ROS 2 (CDR), read strictly.

Each number that a message declares is checked against the bytes that there are, before anything is made from it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from runtime.errors import ImageError

MAX_SIDE_PX = 16_384
_MAX_NAME_BYTES = 4096
# Bytes of a row for each pixel of width; nv12 has half as many rows of colour below.
_PIXEL_BYTES = {
    "rgb8": 3,
    "bgr8": 3,
    "rgba8": 4,
    "bgra8": 4,
    "mono8": 1,
    "nv12": 1,
    "yuv422": 2,
    "yuv422_yuy2": 2,
}
_MAGICS = {"jpeg": b"\xff\xd8\xff", "png": b"\x89PNG\r\n\x1a\n"}


@dataclass(frozen=True, slots=True)
class RawPicture:
    """An Image: ``rows`` rows of ``step`` bytes, of which ``row_bytes`` hold pixels."""

    encoding: str
    width: int
    height: int
    step: int
    rows: int
    row_bytes: int
    data: bytes


@dataclass(frozen=True, slots=True)
class CompressedPicture:
    """A CompressedImage: a whole JPEG or PNG file."""

    data: bytes


def read_image(message: bytes, ros1: bool) -> RawPicture:
    """Read an Image. Raises ImageError for an unknown encoding and for numbers that do not fit each other."""
    fields = _Fields(message, ros1)
    fields.header()
    height, width = fields.u32(), fields.u32()
    encoding = fields.text()
    big_endian, step = fields.u8(), fields.u32()
    data = fields.blob()
    if encoding not in _PIXEL_BYTES:
        raise ImageError(f"encoding {encoding[:40]!r}, known are {', '.join(_PIXEL_BYTES)}")
    if not (1 <= width <= MAX_SIDE_PX and 1 <= height <= MAX_SIDE_PX):
        raise ImageError(f"{width}x{height} px, sides are 1 to {MAX_SIDE_PX}")
    if big_endian > 1:
        raise ImageError(f"is_bigendian is {big_endian}, expected 0 or 1")
    if (encoding == "nv12" and (width | height) & 1) or (encoding.startswith("yuv") and width & 1):
        raise ImageError(f"{width}x{height} px are odd, {encoding} holds pairs")
    row_bytes = width * _PIXEL_BYTES[encoding]
    rows = height * 3 // 2 if encoding == "nv12" else height
    if step < row_bytes:
        raise ImageError(f"step is {step}, a row of {width} px of {encoding} has {row_bytes} bytes")
    if len(data) != step * rows:
        raise ImageError(f"{len(data)} bytes of data, {rows} rows of {step} bytes are declared")
    return RawPicture(encoding, width, height, step, rows, row_bytes, data)


def read_compressed(message: bytes, ros1: bool) -> CompressedPicture:
    """Read a CompressedImage. Raises ImageError for anything but JPEG and PNG, as the format and the data both say."""
    fields = _Fields(message, ros1)
    fields.header()
    named = fields.text()
    data = fields.blob()
    words = named.lower().replace("jpg", "jpeg")
    if "depth" in words or not any(name in words and data.startswith(magic) for name, magic in _MAGICS.items()):
        raise ImageError(f"format {named[:40]!r} over data that begin with {data[:4].hex()}: neither JPEG nor PNG")
    return CompressedPicture(data)


class _Fields:
    """Reads a message from front to back."""

    def __init__(self, message: bytes, ros1: bool) -> None:
        self._message = message
        self._ros1 = ros1
        self._origin = 0 if ros1 else 4  # CDR: four bytes say how the rest is written, and alignment begins after them
        self._at = self._origin
        if not ros1 and (len(message) < 4 or message[0] != 0 or message[1] not in (0, 1)):
            raise ImageError(f"a message that begins with {message[:4].hex()}: not plain CDR")
        self._order = "<" if ros1 or message[1] == 1 else ">"

    def header(self) -> None:
        """Skip std_msgs/Header."""
        for _ in range(3 if self._ros1 else 2):  # seq (ROS 1 alone), seconds, nanoseconds
            self.u32()
        self.text()

    def u8(self) -> int:
        return self._take(1)[0]

    def u32(self) -> int:
        if not self._ros1:
            self._at += -(self._at - self._origin) % 4
        return int(struct.unpack(f"{self._order}I", self._take(4))[0])

    def text(self) -> str:
        length = self.u32()
        if length > _MAX_NAME_BYTES:
            raise ImageError(f"a text of {length} bytes, the limit is {_MAX_NAME_BYTES}")
        return self._take(length).rstrip(b"\0").decode("utf-8", errors="replace")

    def blob(self) -> bytes:
        return self._take(self.u32())

    def _take(self, count: int) -> bytes:
        start, self._at = self._at, self._at + count
        if self._at > len(self._message):
            raise ImageError(f"the message ends after {len(self._message)} bytes, {self._at} are declared")
        return self._message[start : self._at]
