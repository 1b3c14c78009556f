"""The size that a JPEG declares, read before a decoder sees it."""

from __future__ import annotations

_START = b"\xff\xd8"
_END = b"\xff\xd9"
# Frame headers of the processes that JPEG knows; C4, C8 and CC in between are other segments.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_ALONE = frozenset({0x01, *range(0xD0, 0xD9)})


def jpeg_size(data: bytes | bytearray | memoryview) -> tuple[int, int] | None:
    """Width and height of a whole JPEG; None for anything else: cut short, without a frame header, of no size."""
    if bytes(data[:2]) != _START or not bytes(data[-64:]).rstrip(b"\0\r\n").endswith(_END):
        return None
    at = 2
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            return None
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
        elif marker in _ALONE:
            at += 2
        elif marker in _FRAMES:
            return _size(data, at)
        elif marker == 0xDA:  # the picture begins, and nothing has said how large it is
            return None
        else:
            at += 2 + max(2, data[at + 2] << 8 | data[at + 3])
    return None


def _size(data: bytes | bytearray | memoryview, at: int) -> tuple[int, int] | None:
    if at + 10 > len(data):
        return None
    height, width = data[at + 5] << 8 | data[at + 6], data[at + 7] << 8 | data[at + 8]
    return (width, height) if width and height else None
