"""What a launch hands to a driver, checked: kernel arguments by their signature, grid, block and shared memory."""

from __future__ import annotations

import ctypes
import operator
from collections.abc import Sequence
from typing import Any

import numpy.typing as npt

from kernels.driver.protocol import Dim3
from kernels.errors import ArrayError

POINTER, FLOAT = "P", "f"
C_TYPES: dict[str, Any] = {
    POINTER: ctypes.c_uint64,
    "i": ctypes.c_int32,
    "I": ctypes.c_uint32,
    "q": ctypes.c_int64,
    "Q": ctypes.c_uint64,
    FLOAT: ctypes.c_float,
}
RANGES = {
    POINTER: (0, 2**64 - 1),
    "i": (-(2**31), 2**31 - 1),
    "I": (0, 2**32 - 1),
    "q": (-(2**63), 2**63 - 1),
    "Q": (0, 2**64 - 1),
}
MAX_GRID: Dim3 = (2**31 - 1, 65535, 65535)
MAX_BLOCK: Dim3 = (1024, 1024, 64)
MAX_THREADS = 1024
STATIC_LIMIT_BYTES = 48 * 1024  # dynamic shared memory that needs no opt-in


def checked_arguments(name: str, signature: str, args: Sequence[Any]) -> tuple[int | float, ...]:
    """Return the arguments as plain numbers that fit their letters. Raises ArrayError, naming the argument."""
    if len(signature) != len(args):
        raise ArrayError(f"{name} takes {len(signature)} arguments ({signature}), got {len(args)}")
    return tuple(
        _checked(f"argument {index} of {name}", letter, value)
        for index, (letter, value) in enumerate(zip(signature, args, strict=True))
    )


def _checked(what: str, letter: str, value: Any) -> int | float:
    if letter == FLOAT:
        if isinstance(value, bool) or not hasattr(value, "__float__"):
            raise ArrayError(f"{what} is a {type(value).__name__}, expected a number (f)")
        return float(value)
    if letter not in RANGES:
        raise ArrayError(f"{what} has the letter {letter!r}, known are {' '.join(C_TYPES)}")
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        expected = "an address" if letter == POINTER else "an integer"
        raise ArrayError(f"{what} is a {type(value).__name__}, expected {expected} ({letter})")
    number = operator.index(value)
    low, high = RANGES[letter]
    if not low <= number <= high:
        raise ArrayError(f"{what} is {number}, outside {low}..{high} ({letter})")
    return number


def c_values(signature: str, numbers: Sequence[int | float]) -> tuple[Any, ...]:
    """Return one ctypes value per argument; their addresses are what cuLaunchKernel takes."""
    return tuple(C_TYPES[letter](number) for letter, number in zip(signature, numbers, strict=True))


def check_geometry(name: str, grid: Dim3, block: Dim3, shared_bytes: int, limit_bytes: int) -> None:
    """Refuse a launch that no device takes: empty grids (N = 0) and what is beyond CUDA's limits. Raises ArrayError.

    limit_bytes: dynamic shared memory that a block may have on this device.
    """
    for kind, have, most in (("grid", grid, MAX_GRID), ("block", block, MAX_BLOCK)):
        if len(have) != 3 or not all(1 <= size <= limit for size, limit in zip(have, most, strict=True)):
            raise ArrayError(f"{name}: the {kind} is {tuple(have)}, each of x, y, z must be 1 to {most}")
    threads = block[0] * block[1] * block[2]
    if threads > MAX_THREADS:
        raise ArrayError(f"{name}: a block of {threads} threads, at most {MAX_THREADS}")
    if not 0 <= shared_bytes <= limit_bytes:
        raise ArrayError(f"{name}: {shared_bytes} bytes of dynamic shared memory, the device has 0 to {limit_bytes}")


def check_size(nbytes: int, what: str = "bytes") -> None:
    """Refuse an allocation of nothing. Raises ArrayError."""
    if nbytes < 1:
        raise ArrayError(f"an allocation of {nbytes} {what}, at least 1")


def check_source(source: npt.NDArray[Any]) -> None:
    """Refuse a host array that cannot be copied as one run of bytes. Raises ArrayError."""
    if not source.flags.c_contiguous:
        raise ArrayError(f"a host array of shape {source.shape} with the strides {source.strides} is not contiguous")


def check_target(target: npt.NDArray[Any]) -> None:
    """Refuse a host array that cannot be written as one run of bytes. Raises ArrayError."""
    check_source(target)
    if not target.flags.writeable:
        raise ArrayError(f"a host array of shape {target.shape} is read-only and cannot be copied into")
