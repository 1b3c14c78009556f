"""A CUDA driver without a GPU for the stand-ins: contexts, memory, modules, streams, events and graphs.

Methods have the names and arguments of the driver API; kernels are the emulator's libraries, whose path stands for
the image. A call returns its value or raises Failure with CUDA's code. Work runs at once, or is kept by a capture.
"""

from __future__ import annotations

import ctypes
import os
from collections import Counter
from collections.abc import Callable
from itertools import count

from kernels.driver.emulated_memory import EmulatedMemory
from kernels.errors import DeviceError, OutOfMemoryError

INVALID_VALUE, OUT_OF_MEMORY, INVALID_CONTEXT, NO_IMAGE, INVALID_HANDLE, NOT_FOUND = 1, 2, 201, 209, 400, 500
CAPTURING, ILLEGAL_ADDRESS = 900, 700
STRINGS = {
    INVALID_VALUE: "invalid argument",
    OUT_OF_MEMORY: "out of memory",
    100: "no CUDA-capable device is detected",
    101: "invalid device ordinal",
    INVALID_CONTEXT: "invalid device context",
    NO_IMAGE: "no kernel image is available for execution on the device",
    INVALID_HANDLE: "invalid resource handle",
    NOT_FOUND: "named symbol not found",
    ILLEGAL_ADDRESS: "an illegal memory access was encountered",
    719: "unspecified launch failure",
    901: "operation failed due to a previous error during capture",
    CAPTURING: "operation not permitted when stream is capturing",
}
PRIMARY = {0: 0xA000, 1: 0xA100}  # handles of the primary contexts, by device


class Failure(Exception):
    """A call that returned something other than CUDA_SUCCESS."""

    def __init__(self, call: str, code: int) -> None:
        super().__init__(f"{call} failed: {STRINGS.get(code, 'unknown error')}")
        self.call = call
        self.code = code


class Machine:
    """``fail[name] = code``: the next call of that name fails so; a sticky code makes every later call fail."""

    def __init__(self, total_bytes: int = 1 << 30) -> None:
        self.memory = EmulatedMemory(total_bytes)
        self.stack: list[int] = []
        self.retained: Counter[int] = Counter()
        self.open: dict[int, str] = {}  # handles by kind
        self.log: list[tuple[object, ...]] = []
        self.fail: dict[str, int] = {}
        self.sticky = 0
        self.warnings: list[str] = []  # what destructors could not give back
        self.granted: Counter[str] = Counter()
        self.registers = 40
        self._numbers = count(0x5000, 8)
        self._libraries: dict[int, ctypes.CDLL] = {}
        self._functions: dict[int, tuple[ctypes.CDLL, str]] = {}
        self._recording: dict[int, list[Callable[[], object]]] = {}
        self._graphs: dict[int, list[Callable[[], object]]] = {}
        self._timing: dict[int, bool] = {}
        self._times: dict[int, float] = {}

    # Initialisation, devices and contexts

    def enter(self, call: str, *args: object, context: bool = True) -> None:
        """Log a call; fail as asked, after a sticky error, or without a current context."""
        self.log.append((call, *args))
        code = self.fail.pop(call, self.sticky)
        if code in (ILLEGAL_ADDRESS, 719):
            self.sticky = code
        if code:
            raise Failure(call, code)
        if context and not self.stack:
            raise Failure(call, INVALID_CONTEXT)

    def calls(self, name: str) -> list[tuple[object, ...]]:
        return [entry[1:] for entry in self.log if entry[0] == name]

    def init(self, flags: int) -> None:
        self.enter("cuInit", flags, context=False)

    def push(self, context: int) -> None:
        self.enter("cuCtxPushCurrent", context, context=False)
        if context in PRIMARY.values() and not self.retained[context]:
            raise Failure("cuCtxPushCurrent", INVALID_CONTEXT)
        self.stack.append(context)

    def pop(self) -> int:
        self.enter("cuCtxPopCurrent")
        return self.stack.pop()

    def retain(self, device: int) -> int:
        self.enter("cuDevicePrimaryCtxRetain", device, context=False)
        self.retained[PRIMARY[device]] += 1
        return PRIMARY[device]

    def release(self, device: int) -> None:
        self.enter("cuDevicePrimaryCtxRelease", device, context=False)
        assert self.retained[PRIMARY[device]] > 0, "released more often than retained"
        self.retained[PRIMARY[device]] -= 1

    def device_of_current(self) -> int:
        self.enter("cuCtxGetDevice")
        return 1 if self.stack[-1] == PRIMARY[1] else 0

    # Memory

    def alloc(self, nbytes: int) -> int:
        self.enter("cuMemAlloc", nbytes)
        self._refuse_capture("cuMemAlloc")
        try:
            return self._opened(self.memory.alloc(nbytes), "memory")
        except OutOfMemoryError as error:
            raise Failure("cuMemAlloc", OUT_OF_MEMORY) from error

    def free(self, ptr: int) -> None:
        self.enter("cuMemFree", ptr)
        self._refuse_capture("cuMemFree")
        self._close("cuMemFree", ptr, "memory")
        self.memory.free(ptr)

    def host_alloc(self, nbytes: int, flags: int) -> int:
        self.enter("cuMemHostAlloc", nbytes, flags)
        return self._opened(self.memory.alloc(nbytes, counted=False), "pinned mapped" if flags & 2 else "pinned")

    def host_pointer(self, address: int) -> int:
        self.enter("cuMemHostGetDevicePointer", address)
        if self.open.get(address) != "pinned mapped":
            raise Failure("cuMemHostGetDevicePointer", INVALID_VALUE)
        return address

    def host_free(self, address: int) -> None:
        self.enter("cuMemFreeHost", address)
        self._close("cuMemFreeHost", address, "pinned", "pinned mapped")
        self.memory.free(address)

    def copy(self, call: str, target: int, source: int, nbytes: int, stream: int) -> None:
        self.enter(call, target, source, nbytes, stream)
        for device_side in {"cuMemcpyHtoDAsync": [target], "cuMemcpyDtoHAsync": [source]}.get(call, [target, source]):
            self._inside(call, device_side, nbytes)
        self._enqueue(call, stream, lambda: ctypes.memmove(target, source, nbytes))

    def memset(self, ptr: int, value: int, nbytes: int, stream: int) -> None:
        self.enter("cuMemsetD8Async", ptr, value, nbytes, stream)
        self._inside("cuMemsetD8Async", ptr, nbytes)
        self._enqueue("cuMemsetD8Async", stream, lambda: ctypes.memset(ptr, value, nbytes))

    # Modules and launches

    def load(self, image: bytes) -> int:
        self.enter("cuModuleLoadData")
        if not image.startswith(b"/"):
            raise Failure("cuModuleLoadData", NO_IMAGE)
        library = ctypes.CDLL(os.fsdecode(image))
        library.emulator_error.restype = ctypes.c_char_p
        library.emulator_launch.argtypes = (
            ctypes.c_char_p, *(ctypes.c_uint,) * 7, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p
        )  # fmt: skip
        handle = self._opened(next(self._numbers), "module")
        self._libraries[handle] = library
        return handle

    def unload(self, module: int) -> None:
        self.enter("cuModuleUnload", module)
        self._close("cuModuleUnload", module, "module")

    def function(self, module: int, name: str) -> int:
        self.enter("cuModuleGetFunction", module, name)
        self._require("cuModuleGetFunction", module, "module")
        if self._libraries[module].emulator_parameters(name.encode(), None, 0) < 0:
            raise Failure("cuModuleGetFunction", NOT_FOUND)
        handle = next(self._numbers)
        self._functions[handle] = self._libraries[module], name
        return handle

    def sizes(self, function: int) -> list[int]:
        """Bytes of each parameter of a kernel."""
        library, name = self._functions[function]
        found = (ctypes.c_uint * 64)()
        return list(found[: library.emulator_parameters(name.encode(), found, 64)])

    def grant(self, function: int, nbytes: int) -> None:
        self.enter("cuFuncSetAttribute", function, nbytes)
        self.granted[self._functions[function][1]] = nbytes

    def launch(self, function: int, geometry: tuple[int, ...], shared: int, stream: int, params: list[bytes]) -> None:
        """params: the bytes of each argument, copied at the launch as the driver does."""
        library, name = self._functions[function]
        self.enter("cuLaunchKernel", name, geometry, shared, stream)
        if shared > max(48 * 1024, self.granted[name]):
            raise Failure("cuLaunchKernel", INVALID_VALUE)
        sizes = (ctypes.c_uint * len(params))(*map(len, params))
        kept = [ctypes.create_string_buffer(param, len(param)) for param in params]
        addresses = (ctypes.c_void_p * len(kept))(*map(ctypes.addressof, kept))

        def run() -> None:
            if library.emulator_launch(name.encode(), *geometry, shared, addresses, len(kept), sizes):
                self.sticky = 719

        self._enqueue("cuLaunchKernel", stream, run)
        del kept[len(params) :]  # keep the buffers alive as long as the closure

    # Streams, events and graphs

    def stream(self, flags: int) -> int:
        self.enter("cuStreamCreate", flags)
        return self._opened(next(self._numbers), "stream")

    def stream_destroy(self, stream: int) -> None:
        self.enter("cuStreamDestroy", stream)
        self._close("cuStreamDestroy", stream, "stream")

    def stream_synchronize(self, stream: int) -> None:
        self.enter("cuStreamSynchronize", stream)
        self._require_stream("cuStreamSynchronize", stream)
        if stream in self._recording:
            raise Failure("cuStreamSynchronize", CAPTURING)

    def stream_wait(self, stream: int, event: int) -> None:
        self.enter("cuStreamWaitEvent", stream, event)
        self._require_stream("cuStreamWaitEvent", stream)
        self._require("cuStreamWaitEvent", event, "event")

    def event(self, flags: int) -> int:
        self.enter("cuEventCreate", flags)
        handle = self._opened(next(self._numbers), "event")
        self._timing[handle] = not flags & 2
        return handle

    def event_destroy(self, event: int) -> None:
        self.enter("cuEventDestroy", event)
        self._close("cuEventDestroy", event, "event")

    def event_record(self, event: int, stream: int) -> None:
        self.enter("cuEventRecord", event, stream)
        self._require("cuEventRecord", event, "event")
        self._enqueue("cuEventRecord", stream, lambda: self._times.__setitem__(event, float(len(self._times))))

    def event_query(self, event: int) -> None:
        self.enter("cuEventQuery", event)
        self._require("cuEventQuery", event, "event")

    def event_synchronize(self, event: int) -> None:
        self.enter("cuEventSynchronize", event)
        self._require("cuEventSynchronize", event, "event")

    def event_elapsed(self, start: int, end: int) -> float:
        self.enter("cuEventElapsedTime", start, end)
        if not (self._timing[start] and self._timing[end] and {start, end} <= self._times.keys()):
            raise Failure("cuEventElapsedTime", INVALID_HANDLE)
        return self._times[end] - self._times[start]

    def begin_capture(self, stream: int, mode: int) -> None:
        self.enter("cuStreamBeginCapture", stream, mode)
        self._require("cuStreamBeginCapture", stream, "stream")
        self._recording[stream] = []

    def end_capture(self, stream: int) -> int:
        self.enter("cuStreamEndCapture", stream)
        handle = self._opened(next(self._numbers), "captured")
        self._graphs[handle] = self._recording.pop(stream)
        return handle

    def instantiate(self, graph: int) -> int:
        self.enter("cuGraphInstantiate", graph)
        handle = self._opened(next(self._numbers), "graph")
        self._graphs[handle] = self._graphs[graph]
        return handle

    def graph_destroy(self, call: str, graph: int, kind: str) -> None:
        self.enter(call, graph)
        self._close(call, graph, kind)

    def graph_launch(self, graph: int, stream: int) -> None:
        self.enter("cuGraphLaunch", graph, stream)
        self._require("cuGraphLaunch", graph, "graph")
        for work in self._graphs[graph]:
            self._enqueue("cuGraphLaunch", stream, work)

    def synchronize(self) -> None:
        self.enter("cuCtxSynchronize")

    # Bookkeeping

    def kinds(self) -> dict[str, int]:
        """What is open, by kind."""
        return dict(Counter(self.open.values()))

    def close(self) -> None:
        self.memory.close()

    def _opened(self, handle: int, kind: str) -> int:
        self.open[handle] = kind
        return handle

    def _require(self, call: str, handle: int, *kinds: str) -> None:
        if self.open.get(handle) not in kinds:
            raise Failure(call, INVALID_HANDLE)

    def _require_stream(self, call: str, stream: int) -> None:
        if stream:
            self._require(call, stream, "stream")

    def _close(self, call: str, handle: int, *kinds: str) -> None:
        self._require(call, handle, *kinds)
        del self.open[handle]

    def _refuse_capture(self, call: str) -> None:
        if self._recording:
            raise Failure(call, CAPTURING)

    def _inside(self, call: str, ptr: int, nbytes: int) -> None:
        try:
            self.memory.check(call, ptr, nbytes)
        except DeviceError as error:
            raise Failure(call, INVALID_VALUE) from error

    def _enqueue(self, call: str, stream: int, work: Callable[[], object]) -> None:
        self._require_stream(call, stream)
        if stream in self._recording:
            self._recording[stream].append(work)
        else:
            work()
