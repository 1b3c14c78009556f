"""Memory files that travel between the daemon and its children, and what a child says about their contents."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Mapping

from runtime.captiond.asks import SharedImage
from runtime.errors import ImageError

_MAX_JPEG_BYTES = 32 * 1024 * 1024
_SEALED = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def memory_file(name: str, data: bytes = b"") -> int:
    """A memory file that holds ``data``; the caller closes it."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    fill(fd, data)
    return fd


def fill(fd: int, data: bytes) -> None:
    """Write all of ``data``."""
    with memoryview(data) as view:
        at = 0
        while at < len(view):
            at += os.write(fd, view[at:])


def jpeg_in(fd: int, answer: Mapping[str, object]) -> bytes | None:
    """The picture that a child says it has written, believed as far as it is there."""
    size = number(answer, "bytes")
    return os.pread(fd, size, 0) if 0 < size <= min(_MAX_JPEG_BYTES, os.fstat(fd).st_size) else None


def image_in(fd: int, answer: Mapping[str, object], pixels: int) -> SharedImage:
    """The pixels that a child says it has written, sealed so that nobody can shorten them under those who read.

    Raises ImageError with what the child found wrong, or when there are not ``pixels`` of them.
    """
    if "error" in answer:
        hint = answer.get("hint")
        raise ImageError(str(answer["error"]), hint=hint if isinstance(hint, str) else None)
    width, height = number(answer, "width"), number(answer, "height")
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALED)
    if width < 1 or height < 1 or width * height != pixels or os.fstat(fd).st_size != 3 * pixels:
        raise ImageError("the image is damaged", hint="open it in an image viewer and save it again")
    return SharedImage(fd, width, height)


def number(answer: Mapping[str, object], name: str) -> int:
    """A whole number of an answer; -1 where there is none."""
    value = answer.get(name)
    return value if isinstance(value, int) else -1
