"""Makes a process give memory back: what the C library keeps for later, and code that only starting needed.

Sources: mallopt(3), madvise(2).
"""

from __future__ import annotations

import ctypes
import mmap
import re
from pathlib import Path

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_BYTES = 65_536
_CODE = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) r-xp \S+ \S+ [1-9]\d* +/")


def give_memory_back() -> None:
    """From now on buffers of 64 KiB and more get pages of their own, which go back when they are freed.

    By default the C library keeps what a few large buffers once took. Does nothing where it has no ``mallopt``.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _BYTES)
        mallopt(_M_TRIM_THRESHOLD, _BYTES)


def let_go_of_code() -> None:
    """Unmap the pages of program code that were needed so far; those that are needed again come back by themselves.

    Loading runs through megabytes of a library once. Code is never written to, so its pages can be had again from the
    file: this is all that separates it from data, which must not be touched.
    """
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines():
        if found := _CODE.match(line):
            start, end = int(found[1], 16), int(found[2], 16)
            madvise(start, end - start, mmap.MADV_DONTNEED)
