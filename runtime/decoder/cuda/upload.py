"""Brings data into device memory through one page-locked buffer, so that the host never holds a second copy of it."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

import numpy as np
import numpy.typing as npt

from kernels.driver.protocol import Device, Event, Stream

BUFFER_BYTES = 32 << 20

Fill = Callable[[npt.NDArray[np.uint8], int], None]
"""fill(target, offset): writes the source's bytes from ``offset`` on into all of ``target``."""


class Uploader:
    """A page-locked buffer in two halves: one is filled while the other is copied. A context manager."""

    def __init__(self, device: Device, stream: Stream, nbytes: int = BUFFER_BYTES) -> None:
        self._device, self._stream = device, stream
        self._half = nbytes // 2
        self._pinned = device.pinned(2 * self._half)
        self._events: list[Event] = []
        self._turn = 0
        try:
            for _ in range(2):
                self._events.append(device.create_event())
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Uploader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def upload(self, ptr: int, nbytes: int, fill: Fill, *, unit: int = 1) -> None:
        """Copy ``nbytes`` from ``fill`` to the device address ``ptr``, in parts of whole ``unit`` bytes."""
        step = self._half // unit * unit
        assert step, f"a unit of {unit} bytes is larger than half the buffer"
        for offset in range(0, nbytes, step):
            count = min(step, nbytes - offset)
            start, event = self._turn * self._half, self._events[self._turn]
            part = self._pinned.array[start : start + count]
            event.synchronize()  # the copy before the last one has left this half
            fill(part, offset)
            self._device.copy_in(ptr + offset, part, self._stream)
            event.record(self._stream)
            self._turn ^= 1

    def close(self) -> None:
        """Wait for the copies and give the buffer back; harmless when repeated."""
        try:
            self._stream.synchronize()
        finally:
            while self._events:
                self._events.pop().close()
            self._pinned.free()
