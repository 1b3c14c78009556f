"""Memory, streams and events of the cuda_bindings backend."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from kernels.driver.handles import Handle, own
from kernels.driver.protocol import Event, Stream
from kernels.errors import ArrayError

if TYPE_CHECKING:
    from kernels.driver.cuda_bindings import BindingsDevice

NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING
DISABLE_TIMING = 2  # CU_EVENT_DISABLE_TIMING
DEVICE_MAP = 2  # CU_MEMHOSTALLOC_DEVICEMAP


class BindingsMemory(Handle):
    """One allocation of cuMemAlloc."""

    def __init__(self, device: BindingsDevice, nbytes: int) -> None:
        if nbytes < 1:
            raise ArrayError(f"an allocation of {nbytes} bytes, at least 1")
        with device.active():
            self._ptr = int(device.calls("cuMemAlloc", nbytes, requested=nbytes))
        self._nbytes = nbytes
        super().__init__(device.handles, "memory", device.releasing("cuMemFree", self._ptr))

    @property
    def ptr(self) -> int:
        self.require_open()
        return self._ptr

    @property
    def nbytes(self) -> int:
        return self._nbytes

    def free(self) -> None:
        self.close()


class BindingsPinned(Handle):
    """Page-locked memory of cuMemHostAlloc."""

    def __init__(self, device: BindingsDevice, nbytes: int, mapped: bool) -> None:
        if nbytes < 1:
            raise ArrayError(f"an allocation of {nbytes} bytes of page-locked memory, at least 1")
        with device.active():
            address = int(device.calls("cuMemHostAlloc", nbytes, DEVICE_MAP if mapped else 0, requested=nbytes))
        super().__init__(device.handles, "pinned", device.releasing("cuMemFreeHost", address))
        self._array = np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))
        self._device_ptr = 0
        if mapped:
            try:
                with device.active():
                    self._device_ptr = int(device.calls("cuMemHostGetDevicePointer", address, 0))
            except BaseException:
                self.close()
                raise

    @property
    def array(self) -> npt.NDArray[np.uint8]:
        self.require_open()
        return self._array

    @property
    def device_ptr(self) -> int:
        self.require_open()
        return self._device_ptr

    def free(self) -> None:
        self.close()


class BindingsStream(Handle):
    """A stream of ours, or (``foreign``) of another library."""

    def __init__(self, device: BindingsDevice, foreign: int | None = None) -> None:
        self._device = device
        if foreign is None:
            with device.active():
                self.raw = device.calls("cuStreamCreate", NON_BLOCKING)
            release = device.releasing("cuStreamDestroy", self.raw)
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
        point = own(event, BindingsEvent)
        point.require_open()
        with self._device.active():
            self._device.calls("cuStreamWaitEvent", self.raw, point.raw, 0)


class BindingsEvent(Handle):
    """An event; without timing it is cheaper."""

    def __init__(self, device: BindingsDevice, timing: bool) -> None:
        self._device = device
        with device.active():
            self.raw = device.calls("cuEventCreate", 0 if timing else DISABLE_TIMING)
        super().__init__(device.handles, "event", device.releasing("cuEventDestroy", self.raw))

    def record(self, stream: Stream) -> None:
        self.require_open()
        target = own(stream, BindingsStream)
        target.require_open()
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
        start = own(since, BindingsEvent)
        start.require_open()
        with self._device.active():
            return float(self._device.calls("cuEventElapsedTime", start.raw, self.raw))


def _nothing() -> None:
    """Another library's handle is left alone."""
