"""Tokens that the device chooses itself: read one step behind, while the next step runs already.

A step's kernels take the token from device memory and leave the next one there, and in a ring in page-locked memory
that the host polls. So the host never waits between two steps; the token that ends an answer costs one step too many.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np

from kernels.arrays import DeviceArray
from kernels.driver.protocol import Device, Event, PinnedMemory, Stream
from kernels.state import RING_ENTRY, SAMPLE_PARAMS
from runtime.errors import EngineError
from runtime.sampling import Draws

RING_ENTRIES = 16
POLL_S = 5e-5


class TokenRing:
    """The ring, the events behind each step, and the parameters of one answer's draws."""

    def __init__(self, device: Device, stream: Stream, arrays: Mapping[str, DeviceArray]) -> None:
        self._device, self._stream, self._arrays = device, stream, arrays
        self._events: list[Event] = []
        self._pinned: PinnedMemory = device.pinned(RING_ENTRIES * RING_ENTRY.itemsize, mapped=True)
        try:
            self._entries = self._pinned.array.view(RING_ENTRY)
            for _ in range(2):
                self._events.append(device.create_event())
        except BaseException:
            self.close()
            raise

    @property
    def nbytes(self) -> int:
        """Bytes of page-locked host memory."""
        return RING_ENTRIES * RING_ENTRY.itemsize

    @property
    def array(self) -> DeviceArray:
        """The ring as kernels see it, u8 [entries, 16]."""
        return DeviceArray(self._pinned.device_ptr, (RING_ENTRIES, RING_ENTRY.itemsize), "u8", self._pinned)

    def begin(self, draws: Draws) -> None:
        """Empty the ring and upload what an answer's draws need. Nothing may be running."""
        self._entries[:] = np.zeros(RING_ENTRIES, RING_ENTRY)
        params = np.zeros(1, SAMPLE_PARAMS)
        for name in ("temperature", "top_p", "min_p", "repetition_penalty"):
            params[name] = getattr(draws.params, name)
        params["top_k"], params["seed"] = min(draws.params.top_k, 2**31 - 1), draws.seed
        seen = np.zeros(self._arrays["seen"].shape, np.uint32)
        if draws.seen is not None:
            packed = np.packbits(draws.seen, bitorder="little")
            seen.view(np.uint8)[: len(packed)] = packed
        for name, values in (("sample_params", params), ("seen", seen)):
            self._device.copy_in(self._arrays[name].ptr, values, self._stream)
        self._stream.synchronize()  # the arrays of this call must outlive the copies

    def enqueued(self, step: int) -> None:
        """The work of a step has been enqueued."""
        self._events[step % 2].record(self._stream)

    def wait(self, step: int) -> tuple[int, float, int]:
        """(token, logprob, status) of a step, as soon as they are there. EngineError when the step leaves nothing."""
        entry, event = self._entries[step % RING_ENTRIES], self._events[step % 2]
        while int(entry["sequence"]) != step + 1:
            if event.done() and int(entry["sequence"]) != step + 1:
                raise EngineError(f"step {step} of the answer ended without a token")
            time.sleep(POLL_S)
        return int(entry["token"]), float(entry["logprob"]), int(entry["status"])

    def close(self) -> None:
        """Give everything back; harmless when repeated."""
        while self._events:
            self._events.pop().close()
        self._pinned.free()
