"""Images of requests as pixels: decoded where a hostile file can do no harm, in a child with little memory and time."""

from __future__ import annotations

import mmap
import os
import resource
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from runtime.captiond.pictures.child import Answer, Handler
from runtime.captiond.pictures.headers import read_header
from runtime.errors import ImageError
from runtime.images import ImageLimits, load_image

CPU_S = 4


class Uploads:
    """Decodes what strangers send."""

    def __init__(self, *, max_bytes: int, max_pixels: int) -> None:
        self.handlers: Mapping[str, Handler] = {"decode": self._decode}
        self._max_bytes = max_bytes
        self._max_pixels = max_pixels

    def _decode(self, message: Mapping[str, Any], fds: Sequence[int]) -> Answer:
        limit_time(CPU_S)
        try:
            width, height = decode(
                fds[0], fds[1], size=int(message["bytes"]), max_bytes=self._max_bytes, max_pixels=self._max_pixels
            )
        except ImageError as error:
            return {"error": error.message, "hint": error.hint}
        return {"width": width, "height": height}


def decode(given: int, made: int, *, size: int, max_bytes: int, max_pixels: int) -> tuple[int, int]:
    """Decode ``size`` bytes of the file ``given`` into the file ``made``: RGB u8, row by row. Returns width, height.

    The header is read by our own code before a decoder sees the data. Raises ImageError.
    """
    if not 0 < size <= max_bytes:
        raise ImageError(f"the image has {size} bytes, the limit is {max_bytes}", hint="make it smaller")
    data = os.pread(given, size, 0)
    header = read_header(data, max_bytes=max_bytes, max_pixels=max_pixels)
    try:
        rgb = load_image(data, limits=ImageLimits(max_pixels=max_pixels, max_bytes=max_bytes))
    except MemoryError:
        raise ImageError("the image takes too much memory to decode", hint="make it smaller") from None
    height, width = rgb.shape[:2]
    if width * height != header.width * header.height:
        raise ImageError("the image is not of the size that its header tells", hint="save it again")
    os.ftruncate(made, rgb.nbytes)
    with mmap.mmap(made, rgb.nbytes) as memory:
        np.frombuffer(memory, np.uint8)[:] = rgb.reshape(-1)
    return width, height


def limit_time(seconds: int) -> None:
    """Let this process compute for ``seconds`` more; then SIGXCPU kills it."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + 1 + seconds, hard))
