"""Device memory of the emulator: host memory in which an access out of bounds is noticed.

Every allocation ends at a page that nothing may touch, and begins behind one, so that an access beyond it stops the
kernel with an address (to within the 255 bytes that the alignment takes). In a process under AddressSanitizer the
allocation comes from its ``malloc`` instead, which knows every byte. Fresh memory is 0xFF: NaN as f16, bf16 and f32.
"""

from __future__ import annotations

import ctypes
import mmap
from functools import lru_cache

from kernels.errors import OutOfMemoryError

ALIGNMENT = 256
POISON = 0xFF

_PROT_NONE = 0
_ANONYMOUS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS


@lru_cache(maxsize=1)
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    libc.posix_memalign.argtypes = [ctypes.POINTER(ctypes.c_void_p), ctypes.c_size_t, ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    return libc


@lru_cache(maxsize=1)
def sanitized() -> bool:
    """Whether AddressSanitizer watches this process."""
    return hasattr(ctypes.CDLL(None), "__asan_init")


def allocate(nbytes: int) -> int:
    """Reserve ``nbytes`` (at least 1) filled with 0xFF; return the address, a multiple of 256. OutOfMemoryError."""
    address = _allocate_sanitized(nbytes) if sanitized() else _allocate_guarded(nbytes)
    ctypes.memset(address, POISON, nbytes)
    return address


def release(address: int, nbytes: int) -> None:
    """Give back what ``allocate(nbytes)`` returned."""
    if sanitized():
        _libc().free(address)
        return
    start, length = _mapping(address, nbytes)
    _libc().munmap(start, length)


def _mapping(address: int, nbytes: int) -> tuple[int, int]:
    """Return start and length of the pages of an allocation, guards included."""
    body = _round_up(nbytes, ALIGNMENT)
    inner = _round_up(body, mmap.PAGESIZE)
    return address + body - inner - mmap.PAGESIZE, inner + 2 * mmap.PAGESIZE


def _allocate_guarded(nbytes: int) -> int:
    libc = _libc()
    body = _round_up(nbytes, ALIGNMENT)
    inner = _round_up(body, mmap.PAGESIZE)
    start = libc.mmap(None, inner + 2 * mmap.PAGESIZE, _PROT_NONE, _ANONYMOUS, -1, 0)
    usable = (start or 0) + mmap.PAGESIZE
    if start in (None, ctypes.c_void_p(-1).value) or libc.mprotect(usable, inner, mmap.PROT_READ | mmap.PROT_WRITE):
        if start not in (None, ctypes.c_void_p(-1).value):
            libc.munmap(start, inner + 2 * mmap.PAGESIZE)
        raise OutOfMemoryError(f"{nbytes} bytes of memory for the emulator", requested=nbytes, call="mmap")
    return int(usable + inner - body)


def _allocate_sanitized(nbytes: int) -> int:
    found = ctypes.c_void_p()
    if _libc().posix_memalign(ctypes.byref(found), ALIGNMENT, nbytes) or found.value is None:
        raise OutOfMemoryError(f"{nbytes} bytes of memory for the emulator", requested=nbytes, call="posix_memalign")
    return found.value


def _round_up(size: int, unit: int) -> int:
    return -(-size // unit) * unit
