"""The emulator's device memory: blocks of host memory, counted against a limit and watched for stale addresses.

A freed block is filled with 0xFF and kept for a while before the system has it back, so that its addresses are
recognised as stale and a kernel that follows one in a table reads NaN instead of another array's values.
"""

from __future__ import annotations

import ctypes
from bisect import bisect_right, insort
from collections import OrderedDict

from kernels.driver.arguments import check_size
from kernels.driver.cuda_errors import INVALID_VALUE, OUT_OF_MEMORY
from kernels.emulator import allocate, release
from kernels.errors import DeviceError, OutOfMemoryError

FREED = 0xFF  # NaN in every floating-point type, -1 in every integer
KEPT_BYTES = 32 << 20


class EmulatedMemory:
    """Allocations of one emulated device; ``total_bytes`` is all it has."""

    def __init__(self, total_bytes: int) -> None:
        self.total_bytes = total_bytes
        self.used_bytes = 0
        self._starts: list[int] = []
        self._sizes: dict[int, int] = {}
        self._counted_bytes: dict[int, int] = {}
        self._freed: OrderedDict[int, int] = OrderedDict()
        self._freed_bytes = 0

    def alloc(self, nbytes: int, *, counted: bool = True) -> int:
        """Address of ``nbytes`` fresh bytes. Raises ArrayError below one byte, OutOfMemoryError above what is left.

        counted: against the limit; page-locked host memory is not.
        """
        check_size(nbytes)
        free = self.total_bytes - self.used_bytes
        if counted and nbytes > free:
            raise OutOfMemoryError(
                f"{nbytes} bytes of device memory were asked for, {free} of {self.total_bytes} are free",
                requested=nbytes,
                call="cuMemAlloc",
                code=OUT_OF_MEMORY,
            )
        start = allocate(nbytes)
        insort(self._starts, start)
        self._sizes[start] = nbytes
        self._counted_bytes[start] = nbytes if counted else 0
        self.used_bytes += self._counted_bytes[start]
        return start

    def free(self, start: int) -> None:
        """Take back the block that begins at ``start``."""
        nbytes = self._sizes.pop(start)
        self._starts.pop(bisect_right(self._starts, start) - 1)
        self.used_bytes -= self._counted_bytes.pop(start)
        ctypes.memset(start, FREED, nbytes)
        self._freed[start] = nbytes
        self._freed_bytes += nbytes
        while self._freed_bytes > KEPT_BYTES:
            self._release_oldest()

    def check(self, what: str, address: int, nbytes: int = 1) -> None:
        """Refuse null and freed addresses, and ranges that leave their block. Raises DeviceError.

        Other addresses are taken as they are: host memory of another library stands for its device memory.
        """
        if address == 0:
            raise DeviceError(f"{what} is a null pointer", call="check", code=INVALID_VALUE)
        at = bisect_right(self._starts, address) - 1
        if at >= 0:
            start = self._starts[at]
            offset, size = address - start, self._sizes[start]
            if offset < size:
                if offset + nbytes > size:
                    raise DeviceError(
                        f"{what} reaches {offset + nbytes - size} bytes beyond its allocation of {size} bytes",
                        call="check",
                        code=INVALID_VALUE,
                    )
                return
        for start, size in self._freed.items():
            if start <= address < start + size:
                raise DeviceError(f"{what} points into {size} bytes that were freed", call="check", code=INVALID_VALUE)

    def close(self) -> None:
        """Give everything back to the system."""
        for start in list(self._starts):
            self.free(start)
        while self._freed:
            self._release_oldest()

    def _release_oldest(self) -> None:
        start, nbytes = self._freed.popitem(last=False)
        self._freed_bytes -= nbytes
        release(start, nbytes)
