"""Device memory of a decoder: taken in pieces after the sum was compared with what is free, given back as one."""

from __future__ import annotations

from collections.abc import Sequence

from kernels.arrays import DeviceArray
from kernels.driver.protocol import Device, DeviceMemory
from runtime.decoder.cuda.plan import Item, pieces, purpose_bytes
from runtime.device_errors import MEMORY_HINT
from runtime.errors import MemoryLimitError
from runtime.memory import MemoryUse

MIB = 1 << 20
GRAPHS_BYTES = 16 * MIB  # an allowance for what the driver keeps of the captured graphs and the modules


class Allocation:
    """The arrays of some items by name. Frees what it has taken when a later piece is refused."""

    def __init__(self, device: Device, items: Sequence[Item]) -> None:
        self.arrays: dict[str, DeviceArray] = {}
        self._memory: list[DeviceMemory] = []
        self._sizes = purpose_bytes(items)
        try:
            for piece in pieces(items):
                memory = device.alloc(sum(item.room for item in piece))
                self._memory.append(memory)
                at = memory.ptr
                for item in piece:
                    self.arrays[item.name] = DeviceArray(at, item.shape, item.dtype, memory)
                    at += item.room
        except BaseException:
            self.close()
            raise

    def uses(self) -> list[MemoryUse]:
        """Its bytes by purpose."""
        return [MemoryUse(purpose, size, "device") for purpose, size in self._sizes.items()]

    def close(self) -> None:
        """Free everything; harmless when repeated."""
        self.arrays.clear()
        while self._memory:
            self._memory.pop().free()


def shortage(device: Device, items: Sequence[Item]) -> MemoryLimitError | None:
    """The error for items that do not fit into what is free, with the numbers; None when they fit.

    Raises MemoryLimitError for an item that no piece holds.
    """
    for _ in pieces(items):
        pass
    sizes = purpose_bytes(items)
    needed, (free, total) = sum(sizes.values()) + GRAPHS_BYTES, device.memory_info()
    if needed <= free:
        return None
    largest, size = sizes.most_common(1)[0]
    return MemoryLimitError(
        f"the decoder takes {needed // MIB} MiB of device memory, {free // MIB} of {total // MIB} MiB are free; "
        f"most of it is the {largest} ({size // MIB} MiB)",
        hint=MEMORY_HINT,
    )
