"""The driver's interface on pycuda, in the context of the application that uses it already.

The application's current context is used as it is, when it is on the device asked for; else the primary context is
retained, which is also torch's. pycuda has no graphs: they go through cuda-bindings on the stream's handle.
pycuda cannot take a foreign stream: hand it one of its own, or give ``stream.handle`` to the other library.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from kernels.driver.arguments import (
    STATIC_LIMIT_BYTES,
    check_geometry,
    check_source,
    check_target,
    checked_arguments,
)
from kernels.driver.cuda_bindings import ATTRIBUTES, DISABLE_TIMING, NON_BLOCKING, require_bytes
from kernels.driver.cuda_calls import INSTALL, Calls, import_bindings
from kernels.driver.graphs import CudaCapture, captured
from kernels.driver.handles import Handle, Handles, own, stream_handle
from kernels.driver.protocol import Dim3, Event, Image, Stream
from kernels.driver.pycuda_context import PycudaContext
from kernels.errors import ArrayError, DeviceError, ImageError, NoDeviceError


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


class PycudaModule(Handle):
    """A loaded module; pycuda unloads it when it and its functions are no longer referred to."""

    def __init__(self, device: PycudaDevice, image: Image) -> None:
        self.device = device
        code = require_bytes(image)
        with device.active():
            self._raw: Any = device.driver.module_from_buffer(code)
        self._functions: dict[str, Any] = {}
        super().__init__(device.handles, "module", device.releasing(self._drop))

    def function(self, name: str) -> PycudaFunction:
        self.require_open()
        if name not in self._functions:
            try:
                with self.device.active():
                    self._functions[name] = self._raw.get_function(name)
            except ImageError as error:
                raise ImageError(f"the module has no kernel named {name}: {error}") from error
        return PycudaFunction(self, name)

    def raw_function(self, name: str) -> Any:
        """Return pycuda's function, which nobody else keeps."""
        self.require_open()
        return self._functions[name]

    def _drop(self) -> None:
        self._functions.clear()
        self._raw = None


class PycudaFunction:
    """One kernel."""

    def __init__(self, module: PycudaModule, name: str) -> None:
        self._module, self._name = module, name
        self._granted_bytes = STATIC_LIMIT_BYTES
        self._prepared = ""

    @property
    def name(self) -> str:
        return self._name

    def attributes(self) -> dict[str, int]:
        raw, device = self._module.raw_function(self._name), self._module.device
        names = device.driver.function_attribute
        with device.active():
            return {key: int(raw.get_attribute(getattr(names, name))) for key, name in ATTRIBUTES.items()}

    def launch(
        self, grid: Dim3, block: Dim3, shared_bytes: int, stream: Stream, signature: str, args: Sequence[Any]
    ) -> None:
        raw, device, target = self._module.raw_function(self._name), self._module.device, own(stream, PycudaStream)
        target.require_open()
        check_geometry(self._name, grid, block, shared_bytes, device.shared_limit_bytes)
        numbers = checked_arguments(self._name, signature, args)
        with device.active():
            if shared_bytes > self._granted_bytes:
                raw.set_attribute(device.driver.function_attribute.MAX_DYNAMIC_SHARED_SIZE_BYTES, shared_bytes)
                self._granted_bytes = shared_bytes
            if signature != self._prepared:
                raw.prepare(signature)
                self._prepared = signature
            raw.prepared_async_call(tuple(grid), tuple(block), target.raw, *numbers, shared_size=shared_bytes)


class PycudaDevice:
    """A GPU through pycuda. ``ordinal`` None: the device of the application's current context, 0 without one."""

    def __init__(self, ordinal: int | None = None) -> None:
        self.handles = Handles()
        try:
            self.driver: Any = importlib.import_module("pycuda.driver")
        except ImportError as error:
            raise NoDeviceError(f"pycuda.driver cannot be imported: {error}", hint="pip install pycuda") from error
        self._context = PycudaContext(self.driver, self.handles, ordinal)

    @property
    def backend(self) -> str:
        return "pycuda"

    @cached_property
    def name(self) -> str:
        return str(self._context.device.name())

    @cached_property
    def compute_capability(self) -> tuple[int, int]:
        major, minor = self._context.device.compute_capability()
        return int(major), int(minor)

    @cached_property
    def multiprocessors(self) -> int:
        return self._attribute("MULTIPROCESSOR_COUNT")

    @cached_property
    def integrated(self) -> bool:
        return bool(self._attribute("INTEGRATED"))

    @cached_property
    def driver_version(self) -> int:
        return int(self.driver.get_driver_version())

    @cached_property
    def shared_limit_bytes(self) -> int:
        """Shared memory that a block may ask for."""
        return self._attribute("MAX_SHARED_MEMORY_PER_BLOCK_OPTIN")

    def memory_info(self) -> tuple[int, int]:
        self.handles.require_usable()
        with self.active():
            free, total = self.driver.mem_get_info()
        return int(free), int(total)

    def alloc(self, nbytes: int) -> PycudaMemory:
        self.handles.require_no_capture("cuMemAlloc")
        return PycudaMemory(self, nbytes)

    def pinned(self, nbytes: int, *, mapped: bool = False) -> PycudaPinned:
        self.handles.require_no_capture("cuMemHostAlloc")
        return PycudaPinned(self, nbytes, mapped)

    def create_stream(self) -> PycudaStream:
        self.handles.require_usable()
        with self.active():
            raw = self.driver.Stream(NON_BLOCKING)
        return PycudaStream(self, raw)

    def wrap_stream(self, stream: object) -> PycudaStream:
        self.handles.require_usable()
        if isinstance(stream, self.driver.Stream):
            return PycudaStream(self, stream)
        if stream_handle(stream) == 0:
            return PycudaStream(self, None)
        raise DeviceError(
            "pycuda cannot take another library's stream",
            hint="give the handle of a pycuda stream to the other library (torch.cuda.ExternalStream(stream.handle))",
        )

    def create_event(self, *, timing: bool = False) -> PycudaEvent:
        self.handles.require_usable()
        return PycudaEvent(self, timing)

    def load_module(self, image: Image) -> PycudaModule:
        self.handles.require_no_capture("cuModuleLoadData")
        return PycudaModule(self, image)

    def copy_in(self, ptr: int, source: npt.NDArray[Any], stream: Stream) -> None:
        check_source(source)
        with self.active():
            self.driver.memcpy_htod_async(ptr, source, self._raw_stream(stream))

    def copy_out(self, target: npt.NDArray[Any], ptr: int, stream: Stream) -> None:
        check_target(target)
        with self.active():
            self.driver.memcpy_dtoh_async(target, ptr, self._raw_stream(stream))

    def copy(self, target: int, source: int, nbytes: int, stream: Stream) -> None:
        with self.active():
            self.driver.memcpy_dtod_async(target, source, nbytes, self._raw_stream(stream))

    def fill(self, ptr: int, value: int, nbytes: int, stream: Stream) -> None:
        with self.active():
            self.driver.memset_d8_async(ptr, value, nbytes, self._raw_stream(stream))

    def capture(self, stream: Stream) -> AbstractContextManager[CudaCapture]:
        self.handles.require_no_capture("cuStreamBeginCapture")
        try:
            calls = Calls(import_bindings(), self.handles)
        except NoDeviceError as error:
            raise DeviceError(
                "pycuda has no CUDA graphs, and cuda-bindings, which has, is not installed", hint=INSTALL
            ) from error
        calls.initialize()
        return captured(self.handles, calls, self.active, own(stream, PycudaStream))

    def synchronize(self) -> None:
        self.handles.require_no_capture("cuCtxSynchronize")
        with self.active():
            self.driver.Context.synchronize()

    def live(self) -> dict[str, int]:
        return self.handles.live()

    def close(self) -> None:
        if self.handles.closed:
            return
        try:
            self.handles.close_all()
        finally:
            if self.handles.lost is None:
                self._context.close()

    @contextmanager
    def active(self, *, requested: int | None = None) -> Iterator[None]:
        """Make the context current for a block of calls, leave what was current, and type pycuda's errors."""
        with self._context.active(requested):
            yield

    def releasing(self, release: Any) -> Any:
        """Return what gives a handle back, in the context."""

        def in_context() -> None:
            with self.active():
                release()

        return in_context

    def _raw_stream(self, stream: Stream) -> Any:
        target = own(stream, PycudaStream)
        target.require_open()
        return target.raw

    def _attribute(self, name: str) -> int:
        return int(self._context.device.get_attribute(getattr(self.driver.device_attribute, name)))
