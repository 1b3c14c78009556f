"""cuda.bindings.driver without a GPU: functions of the published signatures that return (CUresult, …) tuples.

Source: the signatures of cuda-bindings 12.9 and 13, which test_published_names compares where the package is.
"""

from __future__ import annotations

import ctypes
import enum
import types
from collections.abc import Callable
from typing import Any

from tests.kernels.driver.machine import PRIMARY, STRINGS, Failure, Machine


class _Pointer:
    """A handle class of the bindings: made of an address, gives it back as an int."""

    def __init__(self, init_value: int = 0) -> None:
        self._value = int(init_value)

    def __int__(self) -> int:
        return self._value

    __index__ = __int__


class CUstream(_Pointer):
    pass


class CUevent(_Pointer):
    pass


class CUcontext(_Pointer):
    pass


class CUmodule(_Pointer):
    pass


class CUfunction(_Pointer):
    pass


class CUgraph(_Pointer):
    pass


class CUgraphExec(_Pointer):
    pass


class CUdevice(_Pointer):
    pass


class CUdeviceptr(_Pointer):
    pass


class CUdevice_attribute(enum.IntEnum):
    CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT = 16
    CU_DEVICE_ATTRIBUTE_INTEGRATED = 18
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 75
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 76
    CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN = 97


class CUfunction_attribute(enum.IntEnum):
    CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK = 0
    CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES = 1
    CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES = 3
    CU_FUNC_ATTRIBUTE_NUM_REGS = 4
    CU_FUNC_ATTRIBUTE_BINARY_VERSION = 6
    CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8


class CUstreamCaptureMode(enum.IntEnum):
    CU_STREAM_CAPTURE_MODE_GLOBAL = 0
    CU_STREAM_CAPTURE_MODE_THREAD_LOCAL = 1
    CU_STREAM_CAPTURE_MODE_RELAXED = 2


DEVICE_VALUES = {16: 8, 18: 1, 75: 8, 76: 7, 97: 163 * 1024}
TYPES = (
    CUstream, CUevent, CUcontext, CUmodule, CUfunction, CUgraph, CUgraphExec, CUdevice, CUdeviceptr,
    CUdevice_attribute, CUfunction_attribute, CUstreamCaptureMode,
)  # fmt: skip


def make_modules(machine: Machine) -> dict[str, types.ModuleType]:
    """The modules to put into sys.modules."""
    driver = types.ModuleType("cuda.bindings.driver")
    for kind in TYPES:
        setattr(driver, kind.__name__, kind)
    for group in (_device_calls, _memory_calls, _stream_calls, _module_calls, _graph_calls):
        for function in group(machine):
            setattr(driver, function.__name__, _returning_codes(function))
    package, bindings = types.ModuleType("cuda"), types.ModuleType("cuda.bindings")
    package.bindings, bindings.driver = bindings, driver  # type: ignore[attr-defined]
    return {"cuda": package, "cuda.bindings": bindings, "cuda.bindings.driver": driver}


def _returning_codes(function: Callable[..., Any]) -> Callable[..., tuple[Any, ...]]:
    """Return (code, values…) as the bindings do: one None after the code of a failed call per value."""

    def call(*args: Any) -> tuple[Any, ...]:
        try:
            result = function(*args)
        except Failure as error:
            return (error.code, None)
        if result is None:
            return (0,)
        return (0, *result) if isinstance(result, tuple) else (0, result)

    return call


def _device_calls(machine: Machine) -> list[Callable[..., Any]]:
    def cuInit(Flags: int) -> None:
        machine.init(Flags)

    def cuGetErrorString(error: int) -> bytes:
        if int(error) not in STRINGS:
            raise Failure("cuGetErrorString", 1)
        return STRINGS[int(error)].encode()

    def cuDriverGetVersion() -> int:
        return 13000

    def cuDeviceGet(ordinal: int) -> CUdevice:
        if ordinal not in PRIMARY:
            raise Failure("cuDeviceGet", 101)
        return CUdevice(ordinal)

    def cuDeviceGetName(length: int, dev: CUdevice) -> bytes:
        return b"Stand-in".ljust(length, b"\0")

    def cuDeviceGetAttribute(attrib: CUdevice_attribute, dev: CUdevice) -> int:
        return DEVICE_VALUES[CUdevice_attribute(attrib)]

    def cuDevicePrimaryCtxRetain(dev: CUdevice) -> CUcontext:
        return CUcontext(machine.retain(int(dev)))

    def cuDevicePrimaryCtxRelease(dev: CUdevice) -> None:
        machine.release(int(dev))

    def cuCtxGetCurrent() -> CUcontext:
        return CUcontext(machine.stack[-1] if machine.stack else 0)

    def cuCtxGetDevice() -> CUdevice:
        return CUdevice(machine.device_of_current())

    def cuCtxPushCurrent(ctx: CUcontext) -> None:
        machine.push(int(ctx))

    def cuCtxPopCurrent() -> CUcontext:
        return CUcontext(machine.pop())

    def cuCtxSynchronize() -> None:
        machine.synchronize()

    return [value for name, value in locals().items() if name.startswith("cu")]


def _memory_calls(machine: Machine) -> list[Callable[..., Any]]:
    def cuMemAlloc(bytesize: int) -> CUdeviceptr:
        return CUdeviceptr(machine.alloc(bytesize))

    def cuMemFree(dptr: int) -> None:
        machine.free(int(dptr))

    def cuMemHostAlloc(bytesize: int, Flags: int) -> int:
        return machine.host_alloc(bytesize, Flags)

    def cuMemHostGetDevicePointer(p: int, Flags: int) -> CUdeviceptr:
        return CUdeviceptr(machine.host_pointer(p))

    def cuMemFreeHost(p: int) -> None:
        machine.host_free(p)

    def cuMemGetInfo() -> tuple[int, int]:
        machine.enter("cuMemGetInfo")
        return machine.memory.total_bytes - machine.memory.used_bytes, machine.memory.total_bytes

    def cuMemcpyHtoDAsync(dstDevice: int, srcHost: int, ByteCount: int, hStream: CUstream) -> None:
        machine.copy("cuMemcpyHtoDAsync", int(dstDevice), srcHost, ByteCount, int(hStream))

    def cuMemcpyDtoHAsync(dstHost: int, srcDevice: int, ByteCount: int, hStream: CUstream) -> None:
        machine.copy("cuMemcpyDtoHAsync", dstHost, int(srcDevice), ByteCount, int(hStream))

    def cuMemcpyDtoDAsync(dstDevice: int, srcDevice: int, ByteCount: int, hStream: CUstream) -> None:
        machine.copy("cuMemcpyDtoDAsync", int(dstDevice), int(srcDevice), ByteCount, int(hStream))

    def cuMemsetD8Async(dstDevice: int, uc: int, N: int, hStream: CUstream) -> None:
        machine.memset(int(dstDevice), uc, N, int(hStream))

    return [value for name, value in locals().items() if name.startswith("cu")]


def _stream_calls(machine: Machine) -> list[Callable[..., Any]]:
    def cuStreamCreate(Flags: int) -> CUstream:
        return CUstream(machine.stream(Flags))

    def cuStreamDestroy(hStream: CUstream) -> None:
        machine.stream_destroy(int(hStream))

    def cuStreamSynchronize(hStream: CUstream) -> None:
        machine.stream_synchronize(int(hStream))

    def cuStreamWaitEvent(hStream: CUstream, hEvent: CUevent, Flags: int) -> None:
        machine.stream_wait(int(hStream), int(hEvent))

    def cuEventCreate(Flags: int) -> CUevent:
        return CUevent(machine.event(Flags))

    def cuEventDestroy(hEvent: CUevent) -> None:
        machine.event_destroy(int(hEvent))

    def cuEventRecord(hEvent: CUevent, hStream: CUstream) -> None:
        machine.event_record(int(hEvent), int(hStream))

    def cuEventQuery(hEvent: CUevent) -> None:
        machine.event_query(int(hEvent))

    def cuEventSynchronize(hEvent: CUevent) -> None:
        machine.event_synchronize(int(hEvent))

    def cuEventElapsedTime(hStart: CUevent, hEnd: CUevent) -> float:
        return machine.event_elapsed(int(hStart), int(hEnd))

    return [value for name, value in locals().items() if name.startswith("cu")]


def _module_calls(machine: Machine) -> list[Callable[..., Any]]:
    def cuModuleLoadData(image: bytes) -> CUmodule:
        return CUmodule(machine.load(image))

    def cuModuleUnload(hmod: CUmodule) -> None:
        machine.unload(int(hmod))

    def cuModuleGetFunction(hmod: CUmodule, name: bytes) -> CUfunction:
        return CUfunction(machine.function(int(hmod), name.decode()))

    def cuFuncGetAttribute(attrib: CUfunction_attribute, hfunc: CUfunction) -> int:
        return {0: 256, 1: 0, 3: 0, 4: machine.registers, 6: 87}[CUfunction_attribute(attrib)]

    def cuFuncSetAttribute(hfunc: CUfunction, attrib: CUfunction_attribute, value: int) -> None:
        assert CUfunction_attribute(attrib).name == "CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES"
        machine.grant(int(hfunc), value)

    def cuLaunchKernel(
        f: CUfunction, gridDimX: int, gridDimY: int, gridDimZ: int, blockDimX: int, blockDimY: int, blockDimZ: int,
        sharedMemBytes: int, hStream: CUstream, kernelParams: int, extra: int,
    ) -> None:  # fmt: skip
        assert extra == 0
        sizes = machine.sizes(int(f))
        addresses = (ctypes.c_void_p * len(sizes)).from_address(kernelParams)
        params = [ctypes.string_at(address, size) for address, size in zip(addresses, sizes, strict=True)]
        geometry = (gridDimX, gridDimY, gridDimZ, blockDimX, blockDimY, blockDimZ)
        machine.launch(int(f), geometry, sharedMemBytes, int(hStream), params)

    return [value for name, value in locals().items() if name.startswith("cu")]


def _graph_calls(machine: Machine) -> list[Callable[..., Any]]:
    def cuStreamBeginCapture(hStream: CUstream, mode: CUstreamCaptureMode) -> None:
        machine.begin_capture(int(hStream), int(mode))

    def cuStreamEndCapture(hStream: CUstream) -> CUgraph:
        return CUgraph(machine.end_capture(int(hStream)))

    def cuGraphInstantiate(hGraph: CUgraph, flags: int) -> CUgraphExec:
        return CUgraphExec(machine.instantiate(int(hGraph)))

    def cuGraphDestroy(hGraph: CUgraph) -> None:
        machine.graph_destroy("cuGraphDestroy", int(hGraph), "captured")

    def cuGraphExecDestroy(hGraphExec: CUgraphExec) -> None:
        machine.graph_destroy("cuGraphExecDestroy", int(hGraphExec), "graph")

    def cuGraphLaunch(hGraphExec: CUgraphExec, hStream: CUstream) -> None:
        machine.graph_launch(int(hGraphExec), int(hStream))

    return [value for name, value in locals().items() if name.startswith("cu")]
