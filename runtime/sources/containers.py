"""Video containers by their first bytes, and how much of a file is missing. Nothing is decoded here.

Only known containers reach the decoder: to it, a text file can be a playlist that names other files and hosts.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

_MAGICS = (
    (0, b"\x1aE\xdf\xa3", "matroska"),
    (0, b"OggS", "ogg"),
    (0, b"FLV", "flv"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "asf"),
    (0, b"\0\0\x01\xba", "mpeg-ps"),
    (0, b"\0\0\x01\xb3", "mpeg"),
    (0, b"\0\0\0\x01", "h26x"),
    (0, b"DKIF", "ivf"),
    (0, b"YUV4MPEG2 ", "y4m"),
    (4, b"ftyp", "mp4"),
    (4, b"moov", "mp4"),
    (4, b"mdat", "mp4"),
    (4, b"wide", "mp4"),
    (4, b"free", "mp4"),
    (4, b"skip", "mp4"),
)
_TS_PACKET = 188
HEAD_BYTES = 4096


def container_of(head: bytes) -> str | None:
    """The container that a file with these first bytes has; None for anything that is not a known video."""
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "avi"
    if len(head) > _TS_PACKET and head[0] == 0x47 and head[_TS_PACKET] == 0x47:
        return "mpeg-ts"
    return next((name for at, magic, name in _MAGICS if head[at : at + len(magic)] == magic), None)


def missing_bytes(path: Path) -> int:
    """How many bytes the container declares beyond the end of the file; 0 when it is whole or does not say."""
    size = path.stat().st_size
    with path.open("rb") as file:
        kind = container_of(file.read(HEAD_BYTES))
        file.seek(0)
        measure = _ENDS.get(kind or "")
        declared = measure(file, size) if measure else 0
    return max(0, declared - size)


def _riff_end(file: BinaryIO, size: int) -> int:
    """End of the last RIFF chunk (files above 1 GB have several)."""
    at = 0
    while at < size:
        file.seek(at)
        head = file.read(8)
        if len(head) < 8 or head[:4] != b"RIFF":
            break
        length = int.from_bytes(head[4:], "little")
        if length == 0:  # written as a stream
            break
        at += 8 + length + (length & 1)
    return at - 1 if at == size + 1 else at  # some writers leave out the last padding byte


def _mp4_end(file: BinaryIO, size: int) -> int:
    """End of the last box at the top level."""
    at = 0
    while at < size:
        file.seek(at)
        head = file.read(16)
        if len(head) < 8:
            return at + 8
        length = int.from_bytes(head[:4], "big")
        if length == 1 and len(head) == 16:
            length = int.from_bytes(head[8:], "big")
        if length < 8:  # 0: to the end of the file
            break
        at += length
    return at


def _matroska_end(file: BinaryIO, size: int) -> int:
    """End of the segment behind the EBML header; 0 where its size is unknown, as in streams."""
    file.seek(4)
    header = _ebml_size(file)
    if header is None:
        return 0
    file.seek(header, 1)
    if file.read(4) != b"\x18\x53\x80\x67":
        return 0
    length = _ebml_size(file)
    return 0 if length is None else file.tell() + length


def _ebml_size(file: BinaryIO) -> int | None:
    """A variable-length size; None when it is unknown or broken."""
    first = file.read(1)
    if not first or first[0] == 0:
        return None
    extra = 8 - first[0].bit_length()
    body = file.read(extra)
    value = int.from_bytes(bytes([first[0] & ((1 << (7 - extra)) - 1)]) + body, "big")
    return None if len(body) < extra or value == (1 << (7 * (extra + 1))) - 1 else value


_ENDS: dict[str, Callable[[BinaryIO, int], int]] = {"avi": _riff_end, "mp4": _mp4_end, "matroska": _matroska_end}
