"""Memory, streams and events of the emulator."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from kernels.driver.allocations import Allocation, PinnedAllocation
from kernels.driver.cuda_errors import INVALID_HANDLE
from kernels.driver.handles import Handle, opened, own
from kernels.driver.protocol import Event, Stream
from kernels.errors import DeviceError

if TYPE_CHECKING:
    from kernels.driver.emulator import EmulatorDevice

Work = Callable[[], object]


def allocated(device: EmulatorDevice, nbytes: int) -> Allocation:
    """A block of emulated device memory."""
    start = device.memory.alloc(nbytes)
    return Allocation(device.handles, lambda: device.memory.free(start), start, nbytes)


def page_locked(device: EmulatorDevice, nbytes: int, mapped: bool) -> PinnedAllocation:
    """Host memory that is its own device memory."""
    start = device.memory.alloc(nbytes, counted=False)
    array = np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(start))
    device_address = (lambda: start) if mapped else None
    return PinnedAllocation(device.handles, lambda: device.memory.free(start), array, device_address)


class EmulatorStream(Handle):
    """An order of work; nothing waits, because everything has run. ``recording`` takes the work of a capture."""

    def __init__(self, device: EmulatorDevice, handle: int) -> None:
        self.device = device
        self.recording: list[Work] | None = None
        self._number = handle
        super().__init__(device.handles, "stream", lambda: None)

    @property
    def handle(self) -> int:
        self.require_open()
        return self._number

    def synchronize(self) -> None:
        self.require_open()
        self.device.handles.require_no_capture("cuStreamSynchronize")

    def wait(self, event: Event) -> None:
        self.require_open()
        opened(event, EmulatorEvent)

    def enqueue(self, work: Work) -> None:
        """Run it now, or keep it for the graph that is being captured."""
        self.require_open()
        if self.recording is not None:
            self.recording.append(work)
        else:
            work()


class EmulatorEvent(Handle):
    """A time of the host's clock."""

    def __init__(self, device: EmulatorDevice, timing: bool) -> None:
        self._device = device
        self._timing = timing
        self._at_ns: int | None = None
        super().__init__(device.handles, "event", lambda: None)

    def record(self, stream: Stream) -> None:
        self.require_open()
        own(stream, EmulatorStream).enqueue(self._mark)

    def done(self) -> bool:
        self.require_open()
        return True

    def synchronize(self) -> None:
        self.require_open()
        self._device.handles.require_no_capture("cuEventSynchronize")

    def elapsed_ms(self, since: Event) -> float:
        self.require_open()
        start = opened(since, EmulatorEvent)
        if not (self._timing and start._timing) or self._at_ns is None or start._at_ns is None:
            raise DeviceError(
                "the time between two events needs both recorded and made with timing=True",
                call="cuEventElapsedTime",
                code=INVALID_HANDLE,
            )
        return (self._at_ns - start._at_ns) / 1e6

    def _mark(self) -> None:
        self._at_ns = time.perf_counter_ns()
