"""Memory, streams and events of the cuda_bindings backend."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import numpy as np

from kernels.driver.allocations import Allocation, PinnedAllocation
from kernels.driver.arguments import check_size
from kernels.driver.handles import Handle, opened
from kernels.driver.protocol import Event, Stream

if TYPE_CHECKING:
    from kernels.driver.cuda_bindings import BindingsDevice

NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING
DISABLE_TIMING = 2  # CU_EVENT_DISABLE_TIMING
DEVICE_MAP = 2  # CU_MEMHOSTALLOC_DEVICEMAP


def allocated(device: BindingsDevice, nbytes: int) -> Allocation:
    """One allocation of cuMemAlloc."""
    check_size(nbytes)
    with device.active():
        ptr = int(device.calls("cuMemAlloc", nbytes, requested=nbytes))
    return Allocation(device.handles, device.releasing(device.calls, "cuMemFree", ptr), ptr, nbytes)


def page_locked(device: BindingsDevice, nbytes: int, mapped: bool) -> PinnedAllocation:
    """Page-locked memory of cuMemHostAlloc."""
    check_size(nbytes, "bytes of page-locked memory")
    with device.active():
        address = int(device.calls("cuMemHostAlloc", nbytes, DEVICE_MAP if mapped else 0, requested=nbytes))

    def device_address() -> int:
        with device.active():
            return int(device.calls("cuMemHostGetDevicePointer", address, 0))

    array = np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))
    release = device.releasing(device.calls, "cuMemFreeHost", address)
    return PinnedAllocation(device.handles, release, array, device_address if mapped else None)


class BindingsStream(Handle):
    """A stream of ours, or (``foreign``) of another library."""

    def __init__(self, device: BindingsDevice, foreign: int | None = None) -> None:
        self._device = device
        if foreign is None:
            with device.active():
                self.raw = device.calls("cuStreamCreate", NON_BLOCKING)
            release = device.releasing(device.calls, "cuStreamDestroy", self.raw)
        else:
            self.raw = device.calls.library.CUstream(foreign)
            release = _nothing
        super().__init__(device.handles, "stream", release)

    @property
    def handle(self) -> int:
        self.require_open()
        return int(self.raw)

    def synchronize(self) -> None:
        self.require_open()
        self._device.handles.require_no_capture("cuStreamSynchronize")
        with self._device.active():
            self._device.calls("cuStreamSynchronize", self.raw)

    def wait(self, event: Event) -> None:
        self.require_open()
        point = opened(event, BindingsEvent)
        with self._device.active():
            self._device.calls("cuStreamWaitEvent", self.raw, point.raw, 0)


class BindingsEvent(Handle):
    """An event; without timing it is cheaper."""

    def __init__(self, device: BindingsDevice, timing: bool) -> None:
        self._device = device
        with device.active():
            self.raw = device.calls("cuEventCreate", 0 if timing else DISABLE_TIMING)
        super().__init__(device.handles, "event", device.releasing(device.calls, "cuEventDestroy", self.raw))

    def record(self, stream: Stream) -> None:
        self.require_open()
        target = opened(stream, BindingsStream)
        with self._device.active():
            self._device.calls("cuEventRecord", self.raw, target.raw)

    def done(self) -> bool:
        self.require_open()
        with self._device.active():
            return self._device.calls.ready("cuEventQuery", self.raw)

    def synchronize(self) -> None:
        self.require_open()
        self._device.handles.require_no_capture("cuEventSynchronize")
        with self._device.active():
            self._device.calls("cuEventSynchronize", self.raw)

    def elapsed_ms(self, since: Event) -> float:
        self.require_open()
        start = opened(since, BindingsEvent)
        with self._device.active():
            return float(self._device.calls("cuEventElapsedTime", start.raw, self.raw))


def _nothing() -> None:
    """Another library's handle is left alone."""
