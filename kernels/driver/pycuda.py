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

import numpy.typing as npt

from kernels.driver.allocations import Allocation, PinnedAllocation
from kernels.driver.arguments import (
    STATIC_LIMIT_BYTES,
    check_geometry,
    check_source,
    check_target,
    checked_arguments,
)
from kernels.driver.bindings_handles import NON_BLOCKING
from kernels.driver.cuda_bindings import ATTRIBUTES, require_bytes
from kernels.driver.cuda_calls import INSTALL, Calls, import_bindings
from kernels.driver.graphs import CaptureResult, captured
from kernels.driver.guarded import GpuDevice
from kernels.driver.handles import Handle, opened, own, stream_handle
from kernels.driver.protocol import Dim3, Image, Stream
from kernels.driver.pycuda_context import PycudaContext
from kernels.driver.pycuda_handles import PycudaEvent, PycudaStream, allocated, page_locked
from kernels.errors import DeviceError, ImageError, NoDeviceError


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
        raw, device, target = self._module.raw_function(self._name), self._module.device, opened(stream, PycudaStream)
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


class PycudaDevice(GpuDevice):
    """A GPU through pycuda. ``ordinal`` None: the device of the application's current context, 0 without one."""

    def __init__(self, ordinal: int | None = None) -> None:
        super().__init__()
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
    def driver_version(self) -> int:
        return int(self.driver.get_driver_version())

    def memory_info(self) -> tuple[int, int]:
        self.handles.require_usable()
        with self.active():
            free, total = self.driver.mem_get_info()
        return int(free), int(total)

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

    def capture(self, stream: Stream) -> AbstractContextManager[CaptureResult]:
        self.handles.require_no_capture("cuStreamBeginCapture")
        try:
            calls = Calls(import_bindings(), self.handles)
        except NoDeviceError as error:
            raise DeviceError(
                "pycuda has no CUDA graphs, and cuda-bindings, which has, is not installed", hint=INSTALL
            ) from error
        calls.initialize()
        return captured(self.handles, calls, self.active, own(stream, PycudaStream))

    @contextmanager
    def active(self, *, requested: int | None = None) -> Iterator[None]:
        """Make the context current for a block of calls, leave what was current, and type pycuda's errors."""
        with self._context.active(requested):
            yield

    def _alloc(self, nbytes: int) -> Allocation:
        return allocated(self, nbytes)

    def _pinned(self, nbytes: int, mapped: bool) -> PinnedAllocation:
        return page_locked(self, nbytes, mapped)

    def _create_event(self, timing: bool) -> PycudaEvent:
        return PycudaEvent(self, timing)

    def _load_module(self, image: Image) -> PycudaModule:
        return PycudaModule(self, image)

    def _synchronize(self) -> None:
        with self.active():
            self.driver.Context.synchronize()

    def _release_context(self) -> None:
        self._context.close()

    def _raw_stream(self, stream: Stream) -> Any:
        return opened(stream, PycudaStream).raw

    def _attribute(self, name: str) -> int:
        return int(self._context.device.get_attribute(getattr(self.driver.device_attribute, name)))
