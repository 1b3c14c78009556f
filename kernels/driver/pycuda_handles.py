"""Memory, streams and events of the pycuda backend."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kernels.driver.bindings_handles import DISABLE_TIMING
from kernels.driver.handles import Handle, own
from kernels.driver.protocol import Event, Stream
from kernels.errors import ArrayError

if TYPE_CHECKING:
    from kernels.driver.pycuda import PycudaDevice


class PycudaMemory(Handle):
    """One DeviceAllocation."""

    def __init__(self, device: PycudaDevice, nbytes: int) -> None:
        if nbytes < 1:
            raise ArrayError(f"an allocation of {nbytes} bytes, at least 1")
        with device.active(requested=nbytes):
            self._raw = device.driver.mem_alloc(nbytes)
        self._ptr, self._nbytes = int(self._raw), nbytes
        super().__init__(device.handles, "memory", device.releasing(self._raw.free))

    @property
    def ptr(self) -> int:
        self.require_open()
        return self._ptr

    @property
    def nbytes(self) -> int:
        return self._nbytes

    def free(self) -> None:
        self.close()


class PycudaPinned(Handle):
    """A page-locked array; its ``base`` is the allocation."""

    def __init__(self, device: PycudaDevice, nbytes: int, mapped: bool) -> None:
        if nbytes < 1:
            raise ArrayError(f"an allocation of {nbytes} bytes of page-locked memory, at least 1")
        flags = device.driver.host_alloc_flags.DEVICEMAP if mapped else 0
        with device.active(requested=nbytes):
            self._array: npt.NDArray[np.uint8] = device.driver.pagelocked_empty(nbytes, np.uint8, mem_flags=flags)
        base: Any = self._array.base
        super().__init__(device.handles, "pinned", device.releasing(base.free))
        self._device_ptr = 0
        if mapped:
            try:
                with device.active():
                    self._device_ptr = int(base.get_device_pointer())
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
        point = own(event, PycudaEvent)
        point.require_open()
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
        target = own(stream, PycudaStream)
        target.require_open()
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
        start = own(since, PycudaEvent)
        start.require_open()
        with self._device.active():
            return float(self.raw.time_since(start.raw))

    def _drop(self) -> None:
        self.raw = None
