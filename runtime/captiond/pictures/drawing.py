"""Frames as JPEG pictures, with words on them.

OpenCV 5 brings fonts of its own: Latin, Greek, Cyrillic, Arabic, Chinese, Japanese and Korean are drawn, emoji and
what else it lacks become question marks, and letters are not joined as Arabic and Indic scripts want it. OpenCV 4
knows ASCII alone: accents are taken off, other letters become question marks.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

Picture = npt.NDArray[np.uint8]

_MAX_LINES = 6
_MIN_TEXT_PX = 11
_INK = (255, 255, 255)
_EDGE = (0, 0, 0)
_SHADE = 0.35  # what is left of the picture under the box


class Encoding(RuntimeError):
    """OpenCV did not make a JPEG of it."""


def scaled(rgb: Picture, max_side_px: int) -> Picture:
    """The frame as BGR of its own memory, made smaller until no side is above ``max_side_px``; never larger."""
    height, width = rgb.shape[:2]
    factor = min(1.0, max_side_px / max(height, width))
    if factor < 1:
        size = (max(1, round(width * factor)), max(1, round(height * factor)))
        return _bgr(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA))
    return _bgr(rgb)


def _bgr(rgb: npt.NDArray[Any]) -> Picture:
    bgr: Picture = cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)  # type: ignore[assignment]  # of the type it was given
    return bgr


def encoded(bgr: Picture, quality: int) -> bytes:
    """A JPEG, quality 1..100."""
    ok, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, min(100, max(1, quality))])
    if not ok:
        raise Encoding("no JPEG")
    return bytes(data.data)


def draw_overlay(bgr: Picture, head: str, caption: str) -> None:
    """Write ``head`` into a box at the top and ``caption``, wrapped, into one at the bottom; either may be empty."""
    height, width = bgr.shape[:2]
    size = max(_MIN_TEXT_PX, round(min(height, width) / 22))
    room = width - 2 * size
    if head:
        _box(bgr, wrapped(head, size, room)[:1], size, top=True)
    if caption:
        lines = wrapped(caption, size, room)
        if len(lines) > _MAX_LINES:
            lines = [*lines[: _MAX_LINES - 1], lines[_MAX_LINES - 1] + " …"]
        _box(bgr, lines, size, top=False)


def wrapped(text: str, size: int, room: int) -> list[str]:
    """``text`` in lines no wider than ``room`` px: between words, and inside one that is wider than a line."""
    lines: list[str] = []
    line = ""
    for word in text.split():
        longer = f"{line} {word}" if line else word
        if text_width(longer, size) <= room:
            line = longer
            continue
        if line:
            lines.append(line)
        while len(word) > 1 and text_width(word, size) > room:
            cut = _fitting(word, size, room)
            lines.append(word[:cut])
            word = word[cut:]
        line = word
    return [*lines, line] if line else lines


def text_width(text: str, size: int) -> int:
    """The width of a line in px, drawn ``size`` px high."""
    font = _font()
    if font is None:
        (width, _), _ = cv2.getTextSize(_ascii(text), cv2.FONT_HERSHEY_SIMPLEX, _hershey(size), 1)
        return int(width)
    return int(cv2.getTextSize((1 << 15, 1 << 15), text, (0, 0), font, size)[2])


def _fitting(word: str, size: int, room: int) -> int:
    low, high = 1, len(word)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if text_width(word[:middle], size) <= room else (low, middle - 1)
    return low


def _box(bgr: Picture, lines: list[str], size: int, *, top: bool) -> None:
    """Lines over a darkened strip, so that they can be read over any picture."""
    step = round(1.35 * size)
    strip = min(bgr.shape[0], len(lines) * step + size // 2)
    y = 0 if top else bgr.shape[0] - strip
    place = bgr[y : y + strip]
    place[:] = (place * _SHADE).astype(np.uint8)
    for number, line in enumerate(lines):
        _write(bgr, line, (size, y + number * step + step - size // 6), size)


def _write(bgr: Picture, text: str, at: tuple[int, int], size: int) -> None:
    font = _font()
    if font is not None:
        cv2.putText(bgr, text, at, _INK, font, size, 500)
        return
    for color, width in ((_EDGE, 3), (_INK, 1)):
        cv2.putText(bgr, _ascii(text), at, cv2.FONT_HERSHEY_SIMPLEX, _hershey(size), color, width, cv2.LINE_AA)


@lru_cache(maxsize=1)
def _font() -> Any:
    """The font that comes with OpenCV 5, None with OpenCV 4."""
    return cv2.FontFace("sans") if hasattr(cv2, "FontFace") else None


def _hershey(size: int) -> float:
    return size / 30


def _ascii(text: str) -> str:
    apart = unicodedata.normalize("NFKD", text)
    bare = "".join(letter for letter in apart if not unicodedata.combining(letter))
    return bare.encode("ascii", "replace").decode()
