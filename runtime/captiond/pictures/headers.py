"""What an encoded image says of itself, read without a decoder: its format and its size in pixels.

Three formats, known by their first bytes. Everything is checked against limits before a library sees the data; what
is wrong is told in our own words.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from runtime.errors import ImageError

# Parameters of frames (SOF0..2: baseline, extended, progressive); the other kinds are not decoded.
_FRAMES = (0xC0, 0xC1, 0xC2)
_OTHER_FRAMES = (0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF)
_ALONE = (0x01, *range(0xD0, 0xD9))
_START_OF_SCAN = b"\xff\xda"
# A progressive picture has about ten scans; each one costs a pass over all of its coefficients.
_MAX_SCANS = 100
_HINT = "send a JPEG, PNG or WebP picture"


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """Format, and width and height in px as stored (before the EXIF orientation)."""

    format: Literal["JPEG", "PNG", "WEBP"]
    width: int
    height: int


def read_header(data: bytes, *, max_bytes: int, max_pixels: int) -> ImageHeader:
    """Read the header of a JPEG, PNG or WebP file. Raises ImageError for other data and for values over the limits."""
    if len(data) > max_bytes:
        raise ImageError(f"the image has {len(data)} bytes, the limit is {max_bytes}", hint="make it smaller")
    if data[:3] == b"\xff\xd8\xff":
        header = _jpeg(data)
    elif data[:8] == b"\x89PNG\r\n\x1a\n":
        header = _png(data)
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        header = _webp(data)
    else:
        raise ImageError("the image is neither JPEG nor PNG nor WebP", hint=_HINT)
    if header.width < 1 or header.height < 1:
        raise ImageError(f"the image is {header.width}x{header.height} px", hint="each side must be at least 1 px")
    if header.width * header.height > max_pixels:
        raise ImageError(
            f"the image is {header.width}x{header.height} px, the limit is {max_pixels} px in all",
            hint="make it smaller",
        )
    return header


def _jpeg(data: bytes) -> ImageHeader:
    if data.count(_START_OF_SCAN) > _MAX_SCANS:
        raise ImageError(f"the JPEG image has more than {_MAX_SCANS} scans", hint=_HINT)
    at = 2
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            break
        kind = data[at + 1]
        if kind == 0xFF:  # filling
            at += 1
            continue
        if kind in _ALONE:
            at += 2
            continue
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        if kind in _FRAMES and length >= 8 and at + 10 <= len(data):
            if data[at + 4] != 8:
                raise ImageError(f"the JPEG image has {data[at + 4]} bits per value, 8 are possible", hint=_HINT)
            height, width = (int.from_bytes(data[at + n : at + n + 2], "big") for n in (5, 7))
            return ImageHeader("JPEG", width, height)
        if kind in _OTHER_FRAMES or kind == 0xDA or length < 2:
            break
        at += 2 + length
    raise _damaged("JPEG")


def _png(data: bytes) -> ImageHeader:
    if len(data) < 33 or data[8:16] != b"\0\0\0\rIHDR":
        raise _damaged("PNG")
    return ImageHeader("PNG", int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big"))


def _webp(data: bytes) -> ImageHeader:
    kind = data[12:16]
    if kind == b"VP8X" and len(data) >= 30:
        width, height = (1 + int.from_bytes(data[n : n + 3], "little") for n in (24, 27))
    elif kind == b"VP8L" and len(data) >= 25 and data[20] == 0x2F:
        bits = int.from_bytes(data[21:25], "little")
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    elif kind == b"VP8 " and len(data) >= 30 and data[23:26] == b"\x9d\x01\x2a":
        width, height = (int.from_bytes(data[n : n + 2], "little") & 0x3FFF for n in (26, 28))
    else:
        raise _damaged("WebP")
    return ImageHeader("WEBP", width, height)


def _damaged(name: str) -> ImageError:
    return ImageError(f"the {name} image is damaged", hint="open it in an image viewer and save it again")
