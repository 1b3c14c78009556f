"""pycuda.driver without a GPU: the published names and signatures, forwarding to a Machine.

Source: pycuda's wrap_cudadrv.cpp, cuda.hpp and driver.py (2024.1 and later). Kept from them: pycuda's own stack of
contexts beside the driver's; destructors that give streams, events and modules back; errors that are texts without
codes; ``detach`` of a context that is not current, which leaves it current. Methods take what the originals take.
"""

from __future__ import annotations

import struct
import types
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tests.kernels.driver.machine import PRIMARY, Failure, Machine


class Error(Exception):
    pass


class MemoryError(Error):
    pass


class LogicError(Error):
    pass


class LaunchError(Error):
    pass


class RuntimeError(Error):
    pass


def _translated(error: Failure) -> Error:
    kinds = {2: MemoryError, 719: LaunchError, 701: LaunchError, 702: LaunchError, 100: RuntimeError, 209: RuntimeError}
    return kinds.get(error.code, LogicError)(str(error))


class _Checked:
    """The machine with pycuda's errors."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._machine, name)

        def call(*args: Any) -> Any:
            try:
                return method(*args)
            except Failure as error:
                raise _translated(error) from None

        return call


def make_modules(machine: Machine) -> dict[str, types.ModuleType]:
    """The modules to put into sys.modules."""
    package, driver = types.ModuleType("pycuda"), types.ModuleType("pycuda.driver")
    for name, value in _contents(machine).items():
        setattr(driver, name, value)
    package.driver = driver  # type: ignore[attr-defined]
    return {"pycuda": package, "pycuda.driver": driver}


def _contents(machine: Machine) -> dict[str, Any]:
    cuda = _Checked(machine)
    errors = {"Error": Error, "MemoryError": MemoryError, "LogicError": LogicError, "LaunchError": LaunchError}
    contents: dict[str, Any] = {**errors, "RuntimeError": RuntimeError, **_contexts(machine, cuda), **_constants()}
    return {**contents, **_memory(machine, cuda), **_work(machine, cuda)}


def _constants() -> dict[str, Any]:
    return {
        "device_attribute": types.SimpleNamespace(
            MULTIPROCESSOR_COUNT=16, INTEGRATED=18, MAX_SHARED_MEMORY_PER_BLOCK_OPTIN=97
        ),
        "function_attribute": types.SimpleNamespace(
            MAX_THREADS_PER_BLOCK=0, SHARED_SIZE_BYTES=1, LOCAL_SIZE_BYTES=3, NUM_REGS=4, BINARY_VERSION=6,
            MAX_DYNAMIC_SHARED_SIZE_BYTES=8,
        ),
        "host_alloc_flags": types.SimpleNamespace(PORTABLE=1, DEVICEMAP=2, WRITECOMBINED=4),
        "get_driver_version": lambda: 12060,
        "get_version": lambda: (12, 6, 0),
    }  # fmt: skip


def _contexts(machine: Machine, cuda: Any) -> dict[str, Any]:
    stack: list[Any] = []

    class Device:
        def __init__(self, number: int) -> None:
            if number not in PRIMARY:
                raise LogicError("cuDeviceGet failed: invalid device ordinal")
            self._number = number

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Device) and self._number == other._number

        def __hash__(self) -> int:
            return self._number

        def name(self) -> str:
            return "Stand-in"

        def compute_capability(self) -> tuple[int, int]:
            return 8, 7

        def get_attribute(self, attribute: int) -> int:
            return {16: 8, 18: 1, 97: 163 * 1024}[attribute]

        def make_context(self, flags: int = 0) -> Context:
            if stack:
                cuda.pop()
            context = Context(0xB000 + self._number, self._number)
            cuda.push(context.handle)
            stack.append(context)
            return context

        def retain_primary_context(self) -> Context:
            return Context(cuda.retain(self._number), self._number)

    class Context:
        def __init__(self, handle: int, device: int) -> None:
            self.handle = handle
            self._device = device

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Context) and self.handle == other.handle

        def __hash__(self) -> int:
            return self.handle

        @staticmethod
        def get_current() -> Context | None:
            return stack[-1] if stack else None

        @staticmethod
        def get_device() -> Device:
            return Device(cuda.device_of_current())

        @staticmethod
        def synchronize() -> None:
            cuda.synchronize()

        def push(self) -> None:
            if stack:
                cuda.pop()
            cuda.push(self.handle)
            stack.append(self)

        @staticmethod
        def pop() -> None:
            if not stack:
                raise LogicError("context::pop failed: invalid device context - cannot pop non-current context")
            cuda.pop()
            stack.pop()
            if stack:
                cuda.push(stack[-1].handle)

        def detach(self) -> None:
            active = bool(stack) and stack[-1] == self
            if not active:
                cuda.push(self.handle)
            if self.handle in PRIMARY.values():
                cuda.release(self._device)
            else:
                cuda.pop()
            if active:
                stack.pop()
                if stack:
                    cuda.push(stack[-1].handle)

    return {"init": lambda flags=0: cuda.init(flags), "Device": Device, "Context": Context}


def _memory(machine: Machine, cuda: Any) -> dict[str, Any]:
    class DeviceAllocation:
        def __init__(self, ptr: int) -> None:
            self._ptr = ptr

        def __int__(self) -> int:
            return self._ptr

        __index__ = __int__

        def free(self) -> None:
            cuda.free(self._ptr)
            self._ptr = 0

        def __del__(self) -> None:
            if self._ptr:
                _destroy(machine, machine.free, self._ptr)

    class PagelockedHostAllocation:
        def __init__(self, address: int, nbytes: int) -> None:
            self._address = address
            self.__array_interface__ = {"data": (address, False), "shape": (nbytes,), "typestr": "|u1", "version": 3}

        def free(self) -> None:
            cuda.host_free(self._address)

        def get_device_pointer(self) -> int:
            return int(cuda.host_pointer(self._address))

    def pagelocked_empty(shape: int, dtype: Any, order: str = "C", mem_flags: int = 0) -> np.ndarray[Any, Any]:
        nbytes = int(shape) * np.dtype(dtype).itemsize
        allocation = PagelockedHostAllocation(cuda.host_alloc(nbytes, mem_flags), nbytes)
        return np.asarray(allocation)  # whose base is the allocation, as numpy_empty of the wrapper makes it

    def memcpy_htod_async(dest: int, src: np.ndarray[Any, Any], stream: Any = None) -> None:
        view = memoryview(src)
        assert view.contiguous
        cuda.copy("cuMemcpyHtoDAsync", int(dest), src.ctypes.data, view.nbytes, _handle(stream))

    def memcpy_dtoh_async(dest: np.ndarray[Any, Any], src: int, stream: Any = None) -> None:
        view = memoryview(dest)
        assert view.contiguous and not view.readonly
        cuda.copy("cuMemcpyDtoHAsync", dest.ctypes.data, int(src), view.nbytes, _handle(stream))

    def memcpy_dtod_async(dest: int, src: int, size: int, stream: Any = None) -> None:
        cuda.copy("cuMemcpyDtoDAsync", int(dest), int(src), size, _handle(stream))

    def memset_d8_async(dest: int, data: int, size: int, stream: Any = None) -> None:
        cuda.memset(int(dest), data, size, _handle(stream))

    def mem_get_info() -> tuple[int, int]:
        cuda.enter("cuMemGetInfo")
        return machine.memory.total_bytes - machine.memory.used_bytes, machine.memory.total_bytes

    functions = (pagelocked_empty, memcpy_htod_async, memcpy_dtoh_async, memcpy_dtod_async, memset_d8_async)
    return {
        "mem_alloc": lambda nbytes: DeviceAllocation(cuda.alloc(nbytes)),
        "mem_get_info": mem_get_info,
        "DeviceAllocation": DeviceAllocation,
        **{function.__name__: function for function in functions},
    }


def _handle(stream: Any) -> int:
    return 0 if stream is None else int(stream.handle)


def _destroy(machine: Machine, destroy: Callable[[int], None], handle: int) -> None:
    """What a destructor does; a dead context is no error in one (the wrapper prints a warning)."""
    try:
        destroy(handle)
    except Failure as error:
        machine.warnings.append(str(error))


def _work(machine: Machine, cuda: Any) -> dict[str, Any]:
    class Stream:
        def __init__(self, flags: int = 0) -> None:
            self._handle = cuda.stream(flags)

        @property
        def handle(self) -> int:
            return int(self._handle)

        def synchronize(self) -> None:
            cuda.stream_synchronize(self._handle)

        def wait_for_event(self, event: Event) -> None:
            cuda.stream_wait(self._handle, event._handle)

        def __del__(self) -> None:
            _destroy(machine, machine.stream_destroy, self._handle)

    class Event:
        def __init__(self, flags: int = 0) -> None:
            self._handle = cuda.event(flags)

        def record(self, stream: Stream | None = None) -> Event:
            cuda.event_record(self._handle, _handle(stream))
            return self

        def synchronize(self) -> Event:
            cuda.event_synchronize(self._handle)
            return self

        def query(self) -> bool:
            cuda.event_query(self._handle)
            return True

        def time_since(self, start: Event) -> float:
            return float(cuda.event_elapsed(start._handle, self._handle))

        def __del__(self) -> None:
            _destroy(machine, machine.event_destroy, self._handle)

    class Module:
        def __init__(self, handle: int) -> None:
            self._handle = handle

        def get_function(self, name: str) -> Function:
            return Function(self, cuda.function(self._handle, name))

        def __del__(self) -> None:
            _destroy(machine, machine.unload, self._handle)

    class Function:
        arg_format: str

        def __init__(self, module: Module, handle: int) -> None:
            self._module = module
            self._handle = handle

        def get_attribute(self, attribute: int) -> int:
            return {0: 256, 1: 0, 3: 0, 4: machine.registers, 6: 87}[attribute]

        def set_attribute(self, attribute: int, value: int) -> None:
            assert attribute == 8
            cuda.grant(self._handle, value)

        def prepare(self, arg_types: Sequence[Any], texrefs: Sequence[Any] = ()) -> Function:
            assert all(isinstance(letter, str) for letter in arg_types)
            self.arg_format = "".join(arg_types)
            return self

        def prepared_async_call(
            self, grid: Any, block: Any, stream: Stream | None, *args: Any, shared_size: int = 0
        ) -> None:
            assert isinstance(block, tuple) and len(grid) == len(block) == 3
            buffer = struct.pack(self.arg_format, *args)
            cuda.launch(self._handle, (*grid, *block), shared_size, _handle(stream), _split(buffer, self._handle))

    def _split(buffer: bytes, function: int) -> list[bytes]:
        """The parameters at their natural alignment, as the driver reads the buffer; it may not be longer."""
        params, offset = [], 0
        for size in machine.sizes(function):
            offset = -(-offset // size) * size
            params.append(buffer[offset : offset + size])
            offset += size
        assert offset == len(buffer), f"a buffer of {len(buffer)} bytes for {offset} bytes of parameters"
        return params

    def module_from_buffer(
        buffer: Any, options: Sequence[Any] = (), message_handler: Any = None, cache_dir: Any = None
    ) -> Module:
        return Module(cuda.load(bytes(memoryview(buffer))))

    classes = {"Stream": Stream, "Event": Event, "Module": Module, "Function": Function}
    return {**classes, "module_from_buffer": module_from_buffer}


class DriverLibrary:
    """The two functions of libcuda that our backend calls around pycuda, by address as ctypes has them."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def cuCtxGetCurrent(self, target: Any) -> int:
        target._obj.value = self._machine.stack[-1] if self._machine.stack else None
        return 0

    def cuCtxPopCurrent_v2(self, target: Any) -> int:
        target._obj.value = self._machine.pop()
        return 0
