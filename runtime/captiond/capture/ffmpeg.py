"""What OpenCV's FFmpeg may do in this process, and what it said when it could not open a stream."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import TypeVar

from runtime.captiond.capture.failures import CaptureFailed

T = TypeVar("T")
_MAX_SAID_BYTES = 65_536
_STATUS = re.compile(r"\b(?:failed: |error |Server returned )(4\d\d|5\d\d)\b")
_SIZE = re.compile(r"Picture size (\d+x\d+) is invalid")
_NO_SESSION = "454"  # what servers say when none of their streams was wanted
_WORDS = (
    ("Connection refused", "refused"),
    ("No route to host", "refused"),
    ("Network is unreachable", "refused"),
    ("Failed to resolve hostname", "refused"),
    ("Connection reset", "closed"),
    ("timed out", "timeout"),
    ("Cannot allocate memory", "memory"),
    ("not on whitelist", "unsupported"),
    ("Protocol not found", "unsupported"),
    ("No decoder", "unsupported"),
    ("Decoder not found", "unsupported"),
    ("Unsupported codec", "unsupported"),
    ("Invalid data found", "damaged"),
)


def permit(protocols: str, **options: str) -> None:
    """Set what the next open may use. Nothing secret: a variable of this process, set after it began, so that not even
    /proc shows it."""
    pairs = {"protocol_whitelist": protocols, **options}
    os.environ["OPENCV_FFMPEG_CAPTURE_OPTIONS"] = "|".join(f"{name};{value}" for name, value in pairs.items())


def heard(work: Callable[[], T]) -> tuple[T, str]:
    """Do something and return what libraries wrote to standard error meanwhile, which then shows it no more.

    It may hold addresses and credentials: it is searched for known words and forgotten.
    """
    before = os.dup(2)
    said = os.memfd_create("said", os.MFD_CLOEXEC)
    try:
        os.dup2(said, 2)
        result = work()
        return result, os.pread(said, _MAX_SAID_BYTES, 0).decode("utf-8", errors="replace")
    finally:
        os.dup2(before, 2)
        os.close(before)
        os.close(said)


def silence() -> None:
    """Send standard error nowhere: a decoder has a line for each damaged packet."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)


def failure(name: str, said: str, elapsed_s: float, limit_s: float) -> CaptureFailed:
    """Why a stream could not be opened, from what FFmpeg said."""
    size = _SIZE.search(said)
    if size:
        return CaptureFailed("too_large", f"{name}: frames of {size[1]} px, more than any decoder takes")
    status = _STATUS.search(said)
    if status and status[1] != _NO_SESSION:
        return CaptureFailed(status[1], f"{name}: the server answers {status[1]}")
    for words, cause in _WORDS:
        if words in said:
            return CaptureFailed(cause, f"{name}: {words[0].lower()}{words[1:]}")
    if elapsed_s >= 0.9 * limit_s:
        return CaptureFailed("timeout", f"{name}: no frame after {elapsed_s:.1f} s", hint="see open_timeout_s")
    if status:
        return CaptureFailed("no_video", f"{name}: no video among its streams")
    return CaptureFailed("failed", f"{name}: no video that can be opened")
