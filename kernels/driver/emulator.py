"""The driver's interface on the CPU: kernels are the same .cu files compiled by g++ (`kernels.emulator`).

Everything runs at once, in the order of the calls. A capture records instead, and its graph replays; what a capture
may not do on CUDA (allocate, free, load, wait) is refused here too. Stands for an Orin: sm 8.7, memory shared with
the host.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy.typing as npt

from kernels.driver.allocations import Allocation, PinnedAllocation
from kernels.driver.arguments import (
    POINTER,
    c_values,
    check_geometry,
    check_source,
    check_target,
    checked_arguments,
)
from kernels.driver.cuda_errors import INVALID_VALUE, LAUNCH_FAILED
from kernels.driver.emulated_memory import EmulatedMemory
from kernels.driver.emulator_handles import EmulatorEvent, EmulatorStream, Work, allocated, page_locked
from kernels.driver.graphs import CaptureResult
from kernels.driver.guarded import GuardedDevice
from kernels.driver.handles import Handle, opened, own, stream_handle
from kernels.driver.protocol import Capture, Dim3, Image, Stream
from kernels.errors import DeviceError, ImageError, StickyError

SHARED_LIMIT_BYTES = 163 * 1024  # of a block on sm 8.7
TOTAL_BYTES = 8 << 30
KERNEL_FAILED = 1  # what emulator_launch returns for a kernel that broke a rule; other codes: never started


class EmulatorModule(Handle):
    """A shared library of kernels; the process keeps it, since a library that is unloaded under a pointer crashes."""

    def __init__(self, device: EmulatorDevice, image: Image) -> None:
        if isinstance(image, bytes):
            raise ImageError(f"the emulator loads shared libraries, not {len(image)} bytes of device code")
        self.device = device
        self.path = Path(image)
        try:
            self.library = ctypes.CDLL(str(self.path))
            self.library.emulator_error.restype = ctypes.c_char_p
            self.library.emulator_parameters.argtypes = (ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int)
            self.library.emulator_launch.argtypes = (
                ctypes.c_char_p,
                *(ctypes.c_uint,) * 7,
                ctypes.c_void_p,
                ctypes.c_int,
                ctypes.c_void_p,
            )
        except (OSError, AttributeError) as error:
            raise ImageError(
                f"{self.path} is no library of emulated kernels: {error}", hint="python -m kernels.emulator"
            ) from error
        super().__init__(device.handles, "module", lambda: None)

    def function(self, name: str) -> EmulatorFunction:
        self.require_open()
        if self.library.emulator_parameters(name.encode(), None, 0) < 0:
            raise ImageError(f"{self.path.name} has no kernel named {name}")
        return EmulatorFunction(self, name)


class EmulatorFunction:
    """One kernel of an emulated module."""

    def __init__(self, module: EmulatorModule, name: str) -> None:
        self._module = module
        self._name = name

    @property
    def name(self) -> str:
        return self._name

    def attributes(self) -> dict[str, int]:
        self._module.require_open()
        return {"registers": 0, "shared_bytes": 0, "local_bytes": 0, "max_threads": 1024, "binary_version": 0}

    def launch(
        self, grid: Dim3, block: Dim3, shared_bytes: int, stream: Stream, signature: str, args: Sequence[Any]
    ) -> None:
        self._module.require_open()
        check_geometry(self._name, grid, block, shared_bytes, SHARED_LIMIT_BYTES)
        numbers = checked_arguments(self._name, signature, args)
        for index, (letter, number) in enumerate(zip(signature, numbers, strict=True)):
            if letter == POINTER and number:
                self._module.device.memory.check(f"argument {index} of {self._name}", int(number))
        values = c_values(signature, numbers)
        own(stream, EmulatorStream).enqueue(lambda: self._run(grid, block, shared_bytes, values))

    def _run(self, grid: Dim3, block: Dim3, shared_bytes: int, values: tuple[Any, ...]) -> None:
        library, count = self._module.library, len(values)
        params = (ctypes.c_void_p * count)(*[ctypes.addressof(value) for value in values])
        sizes = (ctypes.c_uint * count)(*[ctypes.sizeof(value) for value in values])
        code = library.emulator_launch(self._name.encode(), *grid, *block, shared_bytes, params, count, sizes)
        if code == 0:
            return
        message = library.emulator_error().decode(errors="replace")
        if self._name not in message:
            message = f"{self._name}: {message}"
        if code != KERNEL_FAILED:
            raise DeviceError(message, call="cuLaunchKernel", code=INVALID_VALUE)
        error = StickyError(message, call="cuLaunchKernel", code=LAUNCH_FAILED)
        self._module.device.handles.lost = error
        raise error


class EmulatorGraph(Handle):
    """Recorded work."""

    def __init__(self, device: EmulatorDevice, work: list[Work]) -> None:
        self._work = work
        super().__init__(device.handles, "graph", lambda: None)

    def launch(self, stream: Stream) -> None:
        self.require_open()
        target = own(stream, EmulatorStream)
        for work in self._work:
            target.enqueue(work)


class EmulatorDevice(GuardedDevice):
    """A device whose memory is host memory. ``total_bytes``: how much of it there is."""

    def __init__(self, *, total_bytes: int = TOTAL_BYTES) -> None:
        super().__init__()
        self.memory = EmulatedMemory(total_bytes)
        self._next_stream = 0x1000

    @property
    def backend(self) -> str:
        return "emulator"

    @property
    def name(self) -> str:
        return "CPU emulator"

    @property
    def compute_capability(self) -> tuple[int, int]:
        return 8, 7

    @property
    def multiprocessors(self) -> int:
        return 8

    @property
    def integrated(self) -> bool:
        return True

    @property
    def driver_version(self) -> int:
        return 0

    def memory_info(self) -> tuple[int, int]:
        self.handles.require_usable()
        return self.memory.total_bytes - self.memory.used_bytes, self.memory.total_bytes

    def create_stream(self) -> EmulatorStream:
        self.handles.require_usable()
        self._next_stream += 1
        return EmulatorStream(self, self._next_stream)

    def wrap_stream(self, stream: object) -> EmulatorStream:
        self.handles.require_usable()
        return EmulatorStream(self, stream_handle(stream))

    def copy_in(self, ptr: int, source: npt.NDArray[Any], stream: Stream) -> None:
        check_source(source)
        self.memory.check("the target of a copy", ptr, source.nbytes)
        own(stream, EmulatorStream).enqueue(lambda: ctypes.memmove(ptr, source.ctypes.data, source.nbytes))

    def copy_out(self, target: npt.NDArray[Any], ptr: int, stream: Stream) -> None:
        check_target(target)
        self.memory.check("the source of a copy", ptr, target.nbytes)
        own(stream, EmulatorStream).enqueue(lambda: ctypes.memmove(target.ctypes.data, ptr, target.nbytes))

    def copy(self, target: int, source: int, nbytes: int, stream: Stream) -> None:
        self.memory.check("the target of a copy", target, nbytes)
        self.memory.check("the source of a copy", source, nbytes)
        own(stream, EmulatorStream).enqueue(lambda: ctypes.memmove(target, source, nbytes))

    def fill(self, ptr: int, value: int, nbytes: int, stream: Stream) -> None:
        self.memory.check("the target of a fill", ptr, nbytes)
        own(stream, EmulatorStream).enqueue(lambda: ctypes.memset(ptr, value, nbytes))

    @contextmanager
    def capture(self, stream: Stream) -> Iterator[Capture]:
        target = opened(stream, EmulatorStream)
        self.handles.require_no_capture("cuStreamBeginCapture")
        capture, work = CaptureResult(), list[Work]()
        target.recording, self.handles.capturing = work, True
        try:
            yield capture
        finally:
            target.recording, self.handles.capturing = None, False
        capture.finished = EmulatorGraph(self, work)

    def _alloc(self, nbytes: int) -> Allocation:
        return allocated(self, nbytes)

    def _pinned(self, nbytes: int, mapped: bool) -> PinnedAllocation:
        return page_locked(self, nbytes, mapped)

    def _create_event(self, timing: bool) -> EmulatorEvent:
        return EmulatorEvent(self, timing)

    def _load_module(self, image: Image) -> EmulatorModule:
        return EmulatorModule(self, image)

    def _synchronize(self) -> None:
        """Everything has run."""

    def _close(self) -> None:
        self.handles.close_all()
        self.memory.close()
