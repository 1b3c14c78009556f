"""The driver's interface on cuda.bindings.driver of cuda-python 12 and 13: the default on a GPU.

Works in the primary context, which is also torch's and the CUDA runtime's: memory and streams of theirs can be used
as they are. Every call makes that context current when it is not, and leaves what was current before.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import cached_property
from typing import Any

import numpy.typing as npt

from kernels.driver.allocations import Allocation, PinnedAllocation
from kernels.driver.arguments import (
    STATIC_LIMIT_BYTES,
    c_values,
    check_geometry,
    check_source,
    check_target,
    checked_arguments,
)
from kernels.driver.bindings_handles import BindingsEvent, BindingsStream, allocated, page_locked
from kernels.driver.cuda_calls import Calls, import_bindings
from kernels.driver.graphs import CaptureResult, captured
from kernels.driver.guarded import GpuDevice
from kernels.driver.handles import Handle, opened, own, stream_handle
from kernels.driver.protocol import Dim3, Image, Stream
from kernels.errors import ImageError, KernelError

ATTRIBUTES = {
    "registers": "NUM_REGS",
    "shared_bytes": "SHARED_SIZE_BYTES",
    "local_bytes": "LOCAL_SIZE_BYTES",
    "max_threads": "MAX_THREADS_PER_BLOCK",
    "binary_version": "BINARY_VERSION",
}


def require_bytes(image: Image) -> bytes:
    """Refuse what the driver cannot load: it takes the content of a cubin or PTX."""
    if isinstance(image, bytes) and image:
        return image
    raise ImageError(f"a GPU loads a cubin or PTX as bytes, not {image!r}")


class BindingsModule(Handle):
    """A loaded cubin, or PTX that the driver has compiled."""

    def __init__(self, device: BindingsDevice, image: Image) -> None:
        self.device = device
        code = require_bytes(image)
        with device.active():
            self._raw = device.calls("cuModuleLoadData", code)
        super().__init__(device.handles, "module", device.releasing(device.calls, "cuModuleUnload", self._raw))

    def function(self, name: str) -> BindingsFunction:
        self.require_open()
        try:
            with self.device.active():
                raw = self.device.calls("cuModuleGetFunction", self._raw, name.encode())
        except ImageError as error:
            raise ImageError(f"the module has no kernel named {name}: {error}") from error
        return BindingsFunction(self, name, raw)


class BindingsFunction:
    """One kernel."""

    def __init__(self, module: BindingsModule, name: str, raw: Any) -> None:
        self._module, self._name, self._raw = module, name, raw
        self._granted_bytes = STATIC_LIMIT_BYTES

    @property
    def name(self) -> str:
        return self._name

    def attributes(self) -> dict[str, int]:
        return {key: self._attribute(name) for key, name in ATTRIBUTES.items()}

    def launch(
        self, grid: Dim3, block: Dim3, shared_bytes: int, stream: Stream, signature: str, args: Sequence[Any]
    ) -> None:
        self._module.require_open()
        device, target = self._module.device, opened(stream, BindingsStream)
        check_geometry(self._name, grid, block, shared_bytes, device.shared_limit_bytes)
        values = c_values(signature, checked_arguments(self._name, signature, args))
        params = (ctypes.c_void_p * len(values))(*[ctypes.addressof(value) for value in values])
        if shared_bytes > self._granted_bytes:
            self._grant(shared_bytes)
        with device.active():
            device.calls(
                "cuLaunchKernel", self._raw, *grid, *block, shared_bytes, target.raw, ctypes.addressof(params), 0
            )

    def _grant(self, shared_bytes: int) -> None:
        """More than 48 KiB has to be asked for."""
        device = self._module.device
        attribute = device.calls.library.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        with device.active():
            device.calls("cuFuncSetAttribute", self._raw, attribute, shared_bytes)
        self._granted_bytes = shared_bytes

    def _attribute(self, name: str) -> int:
        self._module.require_open()
        device = self._module.device
        attribute = getattr(device.calls.library.CUfunction_attribute, f"CU_FUNC_ATTRIBUTE_{name}")
        with device.active():
            return int(device.calls("cuFuncGetAttribute", attribute, self._raw))


class BindingsDevice(GpuDevice):
    """A GPU through its primary context. ``ordinal`` None: the device of the current context, 0 without one."""

    def __init__(self, ordinal: int | None = None) -> None:
        super().__init__()
        self.calls = Calls(import_bindings(), self.handles)
        self.calls.initialize()
        if ordinal is None:
            ordinal = int(self.calls("cuCtxGetDevice")) if int(self.calls("cuCtxGetCurrent")) else 0
        self._device = self.calls("cuDeviceGet", ordinal)
        self._context = self.calls("cuDevicePrimaryCtxRetain", self._device)

    @property
    def backend(self) -> str:
        return "cuda_bindings"

    @cached_property
    def name(self) -> str:
        name: bytes = self.calls("cuDeviceGetName", 256, self._device)
        return name.split(b"\0", 1)[0].decode(errors="replace")

    @cached_property
    def compute_capability(self) -> tuple[int, int]:
        return self._attribute("COMPUTE_CAPABILITY_MAJOR"), self._attribute("COMPUTE_CAPABILITY_MINOR")

    @cached_property
    def driver_version(self) -> int:
        return int(self.calls("cuDriverGetVersion"))

    def memory_info(self) -> tuple[int, int]:
        self.handles.require_usable()
        with self.active():
            free, total = self.calls("cuMemGetInfo")
        return int(free), int(total)

    def create_stream(self) -> BindingsStream:
        self.handles.require_usable()
        return BindingsStream(self)

    def wrap_stream(self, stream: object) -> BindingsStream:
        self.handles.require_usable()
        return BindingsStream(self, stream_handle(stream))

    def copy_in(self, ptr: int, source: npt.NDArray[Any], stream: Stream) -> None:
        check_source(source)
        self._enqueue(stream, "cuMemcpyHtoDAsync", ptr, source.ctypes.data, source.nbytes)

    def copy_out(self, target: npt.NDArray[Any], ptr: int, stream: Stream) -> None:
        check_target(target)
        self._enqueue(stream, "cuMemcpyDtoHAsync", target.ctypes.data, ptr, target.nbytes)

    def copy(self, target: int, source: int, nbytes: int, stream: Stream) -> None:
        self._enqueue(stream, "cuMemcpyDtoDAsync", target, source, nbytes)

    def fill(self, ptr: int, value: int, nbytes: int, stream: Stream) -> None:
        self._enqueue(stream, "cuMemsetD8Async", ptr, value, nbytes)

    def capture(self, stream: Stream) -> AbstractContextManager[CaptureResult]:
        self.handles.require_no_capture("cuStreamBeginCapture")
        return captured(self.handles, self.calls, self.active, own(stream, BindingsStream))

    @contextmanager
    def active(self) -> Iterator[None]:
        if int(self.calls("cuCtxGetCurrent")) == int(self._context):
            yield
            return
        self.calls("cuCtxPushCurrent", self._context)
        try:
            yield
        except BaseException:
            with suppress(KernelError):  # what failed in the block says more
                self.calls("cuCtxPopCurrent")
            raise
        self.calls("cuCtxPopCurrent")

    def _alloc(self, nbytes: int) -> Allocation:
        return allocated(self, nbytes)

    def _pinned(self, nbytes: int, mapped: bool) -> PinnedAllocation:
        return page_locked(self, nbytes, mapped)

    def _create_event(self, timing: bool) -> BindingsEvent:
        return BindingsEvent(self, timing)

    def _load_module(self, image: Image) -> BindingsModule:
        return BindingsModule(self, image)

    def _synchronize(self) -> None:
        with self.active():
            self.calls("cuCtxSynchronize")

    def _release_context(self) -> None:
        self.calls("cuDevicePrimaryCtxRelease", self._device)

    def _enqueue(self, stream: Stream, call: str, *args: int) -> None:
        target = opened(stream, BindingsStream)
        with self.active():
            self.calls(call, *args, target.raw)

    def _attribute(self, name: str) -> int:
        attribute = getattr(self.calls.library.CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{name}")
        return int(self.calls("cuDeviceGetAttribute", attribute, self._device))
