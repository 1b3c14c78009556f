"""Memory, streams and events of the pycuda backend."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kernels.driver.allocations import Allocation, PinnedAllocation
from kernels.driver.arguments import check_size
from kernels.driver.bindings_handles import DISABLE_TIMING
from kernels.driver.handles import Handle, opened
from kernels.driver.protocol import Event, Stream

if TYPE_CHECKING:
    from kernels.driver.pycuda import PycudaDevice


def allocated(device: PycudaDevice, nbytes: int) -> Allocation:
    """One DeviceAllocation."""
    check_size(nbytes)
    with device.active(requested=nbytes):
        raw = device.driver.mem_alloc(nbytes)
    return Allocation(device.handles, device.releasing(raw.free), int(raw), nbytes)


def page_locked(device: PycudaDevice, nbytes: int, mapped: bool) -> PinnedAllocation:
    """A page-locked array; its ``base`` is the allocation."""
    check_size(nbytes, "bytes of page-locked memory")
    flags = device.driver.host_alloc_flags.DEVICEMAP if mapped else 0
    with device.active(requested=nbytes):
        array: npt.NDArray[np.uint8] = device.driver.pagelocked_empty(nbytes, np.uint8, mem_flags=flags)
    base: Any = array.base

    def device_address() -> int:
        with device.active():
            return int(base.get_device_pointer())

    return PinnedAllocation(device.handles, device.releasing(base.free), array, device_address if mapped else None)


class PycudaStream(Handle):
    """A pycuda stream: ours, the application's, or (raw None) the default stream."""

    def __init__(self, device: PycudaDevice, raw: Any) -> None:
        self._device = device
        self.raw = raw
        super().__init__(device.handles, "stream", device.releasing(self._drop))

    @property
    def handle(self) -> int:
        self.require_open()
        return 0 if self.raw is None else int(self.raw.handle)

    def synchronize(self) -> None:
        self.require_open()
        self._device.handles.require_no_capture("cuStreamSynchronize")
        with self._device.active():
            (self._device.driver.Context if self.raw is None else self.raw).synchronize()

    def wait(self, event: Event) -> None:
        self.require_open()
        point = opened(event, PycudaEvent)
        with self._device.active():
            if self.raw is None:  # pycuda has no call for it; waiting on the host promises more, not less
                point.raw.synchronize()
            else:
                self.raw.wait_for_event(point.raw)

    def _drop(self) -> None:
        self.raw = None  # pycuda destroys a stream when its last reference goes


class PycudaEvent(Handle):
    """A pycuda event."""

    def __init__(self, device: PycudaDevice, timing: bool) -> None:
        self._device = device
        with device.active():
            self.raw: Any = device.driver.Event(0 if timing else DISABLE_TIMING)
        super().__init__(device.handles, "event", device.releasing(self._drop))

    def record(self, stream: Stream) -> None:
        self.require_open()
        target = opened(stream, PycudaStream)
        with self._device.active():
            self.raw.record(target.raw)

    def done(self) -> bool:
        self.require_open()
        with self._device.active():
            return bool(self.raw.query())

    def synchronize(self) -> None:
        self.require_open()
        self._device.handles.require_no_capture("cuEventSynchronize")
        with self._device.active():
            self.raw.synchronize()

    def elapsed_ms(self, since: Event) -> float:
        self.require_open()
        start = opened(since, PycudaEvent)
        with self._device.active():
            return float(self.raw.time_since(start.raw))

    def _drop(self) -> None:
        self.raw = None
