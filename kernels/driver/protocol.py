"""What the project needs of a CUDA driver, in one small interface with three backends.

Handles are owned once: ``close``/``free`` is idempotent, and a closed handle refuses every other call. Every driver
call is checked (`kernels.errors`). Copies and launches are asynchronous on their stream; the caller keeps host arrays
alive until it has synchronised.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Dim3 = tuple[int, int, int]
Image = bytes | Path
"""A cubin or PTX as bytes; for the emulator the path of a shared library."""


class DeviceMemory(Protocol):
    """One allocation in device memory."""

    @property
    def ptr(self) -> int:
        """Device address."""

    @property
    def nbytes(self) -> int:
        """Size as asked for."""

    def free(self) -> None:
        """Give it back; harmless when repeated."""


class PinnedMemory(Protocol):
    """Page-locked host memory."""

    @property
    def array(self) -> npt.NDArray[np.uint8]:
        """The memory as u8 [nbytes]."""

    @property
    def device_ptr(self) -> int:
        """Its device address when it was allocated with ``mapped=True``, else 0."""

    def free(self) -> None:
        """Give it back; harmless when repeated."""


class Stream(Protocol):
    """A CUDA stream, ours or another library's."""

    @property
    def handle(self) -> int:
        """The driver's handle, for other libraries."""

    def synchronize(self) -> None:
        """Wait for all work on it."""

    def wait(self, event: Event) -> None:
        """Let later work on this stream wait for the event."""

    def close(self) -> None:
        """Destroy it when it is ours; harmless when repeated."""


class Event(Protocol):
    """A point on a stream."""

    def record(self, stream: Stream) -> None:
        """Mark the present end of the stream."""

    def done(self) -> bool:
        """Whether everything before it has run."""

    def synchronize(self) -> None:
        """Wait for it."""

    def elapsed_ms(self, since: Event) -> float:
        """Milliseconds between two recorded events that were made with ``timing=True``."""

    def close(self) -> None:
        """Destroy it; harmless when repeated."""


class Function(Protocol):
    """One kernel of a module. Arguments are packed by ``signature``: one letter each, P pointer (u64 address or 0),
    i int32, I uint32, q int64, Q uint64, f float32."""

    @property
    def name(self) -> str:
        """Its symbol."""

    def attributes(self) -> dict[str, int]:
        """registers, shared_bytes (static), local_bytes, max_threads, binary_version (sm as 87); 0 where unknown."""

    def launch(
        self, grid: Dim3, block: Dim3, shared_bytes: int, stream: Stream, signature: str, args: Sequence[Any]
    ) -> None:
        """Enqueue it. More than 48 KiB of dynamic shared memory is asked for (cuFuncSetAttribute) on first use."""


class Module(Protocol):
    """Loaded code."""

    def function(self, name: str) -> Function:
        """A kernel by its symbol; ImageError when it is not there."""

    def close(self) -> None:
        """Unload; harmless when repeated."""


class Graph(Protocol):
    """Captured work that is launched as one."""

    def launch(self, stream: Stream) -> None:
        """Enqueue all of it."""

    def close(self) -> None:
        """Destroy it; harmless when repeated."""


class Capture(Protocol):
    """What ``capture`` yields; ``graph`` is there once the block has ended without an error."""

    @property
    def graph(self) -> Graph:
        """The instantiated graph; the caller closes it."""


class Device(Protocol):
    """A device with a context. Not thread-safe; calls make its context current and leave what was current before."""

    @property
    def backend(self) -> str:
        """cuda_bindings, pycuda or emulator."""

    @property
    def name(self) -> str:
        """As the driver calls it."""

    @property
    def compute_capability(self) -> tuple[int, int]:
        """(8, 7) on Orin."""

    @property
    def multiprocessors(self) -> int:
        """Number of SMs."""

    @property
    def integrated(self) -> bool:
        """Whether it shares its memory with the host (Jetson)."""

    @property
    def driver_version(self) -> int:
        """12060 for CUDA 12.6."""

    def memory_info(self) -> tuple[int, int]:
        """(free, total) bytes."""

    def alloc(self, nbytes: int) -> DeviceMemory:
        """Device memory, uninitialised, aligned to 256 bytes. OutOfMemoryError; ArrayError below one byte."""

    def pinned(self, nbytes: int, *, mapped: bool = False) -> PinnedMemory:
        """Page-locked host memory; with ``mapped`` visible to kernels under ``device_ptr``."""

    def create_stream(self) -> Stream:
        """A new non-blocking stream."""

    def wrap_stream(self, stream: object) -> Stream:
        """Another library's stream: its handle, or the object (torch, cuda.core, pycuda); 0 is the default stream.

        Closing the wrapper leaves it alone. The pycuda backend takes pycuda's own streams and 0 alone.
        """

    def create_event(self, *, timing: bool = False) -> Event:
        """A new event."""

    def load_module(self, image: Image) -> Module:
        """Load compiled code. ImageError when the device cannot run it."""

    def copy_in(self, ptr: int, source: npt.NDArray[Any], stream: Stream) -> None:
        """Host array (contiguous) → device."""

    def copy_out(self, target: npt.NDArray[Any], ptr: int, stream: Stream) -> None:
        """Device → host array (contiguous, writable). Synchronise before reading it."""

    def copy(self, target: int, source: int, nbytes: int, stream: Stream) -> None:
        """Device → device."""

    def fill(self, ptr: int, value: int, nbytes: int, stream: Stream) -> None:
        """Set bytes."""

    def capture(self, stream: Stream) -> AbstractContextManager[Capture]:
        """Record what the block enqueues on ``stream`` instead of running it."""

    def synchronize(self) -> None:
        """Wait for everything."""

    def live(self) -> dict[str, int]:
        """Counts of handles that are open, by kind (memory, pinned, stream, event, module, graph): for leak tests."""

    def close(self) -> None:
        """Close every handle that is still open, then the context if it is ours; harmless when repeated."""
