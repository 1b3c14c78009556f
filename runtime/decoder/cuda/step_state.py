"""What the host writes before a pass: position, slot and tokens of its rows, and of its tail."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kernels.arrays import DeviceArray
from kernels.driver.protocol import Device, Stream
from kernels.state import DECODE_STATE


class StepStates:
    """Two DecodeStates in device memory: of a pass's first row, and of the first row of its tail."""

    def __init__(self, device: Device, stream: Stream, array: DeviceArray) -> None:
        self._device, self._stream, self._array = device, stream, array
        self._host = np.zeros(2, DECODE_STATE)

    @property
    def first(self) -> DeviceArray:
        """u8 [64]: of the first row."""
        return self._array.rows(0, 1).reshape(DECODE_STATE.itemsize)

    @property
    def tail(self) -> DeviceArray:
        """u8 [64]: of the tail's first row."""
        return self._array.rows(1, 2).reshape(DECODE_STATE.itemsize)

    def write(self, *, pos: int, slot: int, tail_pos: int, tokens: Sequence[int] = (), step: int = 0) -> None:
        """Enqueue both, with their status cleared. Nothing may be running that reads them."""
        self._host[:] = np.zeros(2, DECODE_STATE)
        self._host["slot"], self._host["step"] = slot, step
        self._host["pos"] = pos, tail_pos
        self._host["token"][0, : len(tokens)] = tokens
        self._device.copy_in(self._array.ptr, self._host, self._stream)

    def status(self) -> int:
        """The status bits after everything before has run; waits for it."""
        self._device.copy_out(self._host, self._array.ptr, self._stream)
        self._stream.synchronize()
        return int(self._host["status"][0] | self._host["status"][1])
