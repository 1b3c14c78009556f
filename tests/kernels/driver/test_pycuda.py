"""The pycuda backend leaves the application's contexts and streams as it found them, and types pycuda's errors."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from kernels.driver import open_device, pycuda_context
from kernels.driver.pycuda import PycudaDevice
from kernels.emulator import build_library
from kernels.errors import DeviceError, ImageError, NoDeviceError, OutOfMemoryError, StickyError
from tests.kernels.driver.backends import TRIAL, needs_compiler, stand_ins
from tests.kernels.driver.machine import PRIMARY, Machine

ONE = (1, 1, 1)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    with stand_ins(monkeypatch) as made:
        yield made


def application(machine: Machine) -> Any:
    """The module as an application sees it."""
    driver = sys.modules["pycuda.driver"]
    driver.init()  # type: ignore[attr-defined]
    return driver


def use(device: Any) -> None:
    stream, memory = device.create_stream(), device.alloc(64)
    device.fill(memory.ptr, 1, 64, stream)
    device.pinned(16, mapped=True)
    event = device.create_event(timing=True)
    event.record(stream)
    stream.wait(event)
    stream.synchronize()
    with device.capture(stream) as capture:
        device.fill(memory.ptr, 2, 64, stream)
    capture.graph.launch(stream)


def test_primary_context_is_retained_pushed_for_each_call_and_popped(machine: Machine) -> None:
    device = PycudaDevice(0)
    assert machine.stack == [] and machine.retained[PRIMARY[0]] == 1
    machine.log.clear()
    device.alloc(64)
    assert [name for name, *_ in machine.log] == ["cuCtxPushCurrent", "cuMemAlloc", "cuCtxPopCurrent"]
    use(device)
    assert machine.stack == []
    device.close()
    assert machine.stack == [] and not +machine.retained


def test_context_of_another_library_is_current_again_after_every_call(machine: Machine) -> None:
    torch_context = machine.retain(1)  # what cudaSetDevice does: current for the driver, unknown to pycuda
    machine.push(torch_context)
    device = PycudaDevice(0)
    use(device)
    assert machine.stack == [torch_context]
    device.close()
    assert machine.stack == [torch_context], "pycuda's detach leaves the context that it releases current"


@pytest.mark.parametrize("ordinal", [None, 0])
def test_current_context_of_the_application_is_used_as_it_is(machine: Machine, ordinal: int | None) -> None:
    context = application(machine).Device(0).make_context()
    machine.log.clear()
    device = PycudaDevice(ordinal)
    use(device)
    device.close()
    names = {name for name, *_ in machine.log}
    assert not names & {"cuCtxPushCurrent", "cuCtxPopCurrent", "cuDevicePrimaryCtxRetain", "cuDevicePrimaryCtxRelease"}
    assert machine.stack == [context.handle]
    context.pop()


def test_context_of_the_application_on_another_device_is_not_used(machine: Machine) -> None:
    driver = application(machine)
    context = driver.Device(1).retain_primary_context()
    context.push()
    machine.log.clear()
    device = PycudaDevice(0)
    assert machine.calls("cuDevicePrimaryCtxRetain") == [(0,)]
    use(device)
    assert machine.stack == [PRIMARY[1]]
    assert driver.Context.get_current() == context
    device.close()
    assert machine.stack == [PRIMARY[1]]
    assert driver.Context.get_current() == context


def test_context_that_the_application_switched_is_switched_back_to(machine: Machine) -> None:
    driver = application(machine)
    device = PycudaDevice(0)
    context = driver.Device(1).retain_primary_context()
    context.push()
    machine.log.clear()
    memory = device.alloc(8)
    contexts = [(name, args[0]) for name, *args in machine.log if name == "cuCtxPushCurrent"]
    assert contexts == [("cuCtxPushCurrent", PRIMARY[0]), ("cuCtxPushCurrent", PRIMARY[1])]
    memory.free()
    assert machine.stack == [PRIMARY[1]]
    device.close()


def test_context_is_popped_when_a_call_fails(machine: Machine) -> None:
    device = PycudaDevice(0)
    with pytest.raises(OutOfMemoryError):
        device.alloc(1 << 45)
    assert machine.stack == []


@needs_compiler
def test_stream_of_the_application_carries_the_work(machine: Machine) -> None:
    driver = application(machine)
    context = driver.Device(0).make_context()
    device, theirs = PycudaDevice(), driver.Stream()
    stream = device.wrap_stream(theirs)
    assert stream.handle == theirs.handle
    module = device.load_module(os.fsencode(build_library(TRIAL)))
    out = device.alloc(56)
    module.function("sum_shared").launch((2, 1, 1), (32, 1, 1), 400, stream, "Pi", [out.ptr, 100])
    assert machine.calls("cuLaunchKernel") == [("sum_shared", (2, 1, 1, 32, 1, 1), 400, theirs.handle)]
    stream.close()
    assert machine.open[theirs.handle] == "stream", "closing the wrapper leaves the application's stream alone"
    device.close()
    assert machine.open[theirs.handle] == "stream"
    context.pop()


@needs_compiler
def test_module_is_unloaded_though_its_functions_are_still_referred_to(machine: Machine) -> None:
    device = PycudaDevice(0)
    module = device.load_module(os.fsencode(build_library(TRIAL)))
    function = module.function("add_scaled")
    module.close()
    assert machine.kinds() == {} and len(machine.calls("cuModuleUnload")) == 1
    with pytest.raises(DeviceError, match="closed"):
        function.attributes()


@needs_compiler
def test_arguments_are_packed_by_the_signature_of_each_launch(machine: Machine) -> None:
    device = PycudaDevice(0)
    stream, memory = device.create_stream(), device.alloc(64)
    launch = device.load_module(os.fsencode(build_library(TRIAL))).function("add_scaled").launch
    launch(ONE, ONE, 0, stream, "PPfI", [memory.ptr, memory.ptr, 1.0, 2**32 - 1])
    launch(ONE, ONE, 0, stream, "PPfi", [memory.ptr, memory.ptr, 1.0, -1])
    assert len(machine.calls("cuLaunchKernel")) == 2
    device.close()


def test_stream_of_another_library_is_refused_with_the_way_round(machine: Machine) -> None:
    device = PycudaDevice(0)
    with pytest.raises(DeviceError, match="another library's stream") as caught:
        device.wrap_stream(0x7000)
    assert "ExternalStream" in str(caught.value.hint)


def test_own_stream_is_destroyed_when_it_is_closed(machine: Machine) -> None:
    device = PycudaDevice(0)
    stream = device.create_stream()
    handle = stream.handle
    assert machine.calls("cuStreamCreate") == [(1,)], "a stream that does not wait for the default stream"
    stream.close()
    assert machine.calls("cuStreamDestroy") == [(handle,)]


def test_mapped_memory_is_asked_for_by_its_flag(machine: Machine) -> None:
    device = PycudaDevice(0)
    plain, mapped = device.pinned(8), device.pinned(16, mapped=True)
    assert machine.calls("cuMemHostAlloc") == [(8, 0), (16, 2)]
    assert plain.device_ptr == 0 and mapped.device_ptr == mapped.array.ctypes.data
    assert mapped.array.dtype == np.uint8 and mapped.array.shape == (16,)


def test_pinned_memory_that_cannot_be_mapped_is_given_back(machine: Machine) -> None:
    device = PycudaDevice(0)
    machine.fail["cuMemHostGetDevicePointer"] = 1
    with pytest.raises(DeviceError, match="cuMemHostGetDevicePointer"):
        device.pinned(16, mapped=True)
    assert device.live()["pinned"] == 0 and machine.kinds() == {}


def test_graphs_need_cuda_bindings_and_say_so(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    device = PycudaDevice(0)
    stream = device.create_stream()
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", None)  # importing it fails
    with pytest.raises(DeviceError, match="pycuda has no CUDA graphs") as caught:
        device.capture(stream)
    assert caught.value.hint == "pip install cuda-bindings"
    assert not device.handles.capturing


def test_capture_is_of_this_thread_on_the_streams_handle(machine: Machine) -> None:
    device = PycudaDevice(0)
    stream = device.create_stream()
    with device.capture(stream) as capture:
        pass
    assert machine.calls("cuStreamBeginCapture") == [(stream.handle, 1)]
    assert machine.kinds() == {"stream": 1, "graph": 1}
    capture.graph.close()
    assert machine.kinds() == {"stream": 1}


@pytest.mark.parametrize(
    ("call", "code", "kind"),
    [
        ("cuMemAlloc", 2, OutOfMemoryError),
        ("cuMemAlloc", 700, StickyError),
        ("cuMemAlloc", 719, StickyError),
        ("cuMemAlloc", 400, DeviceError),
    ],
)
def test_texts_of_pycuda_become_typed_errors(machine: Machine, call: str, code: int, kind: type[DeviceError]) -> None:
    device = PycudaDevice(0)
    machine.fail[call] = code
    with pytest.raises(DeviceError) as caught:
        device.alloc(48)
    assert type(caught.value) is kind
    assert (caught.value.call, caught.value.code) == (call, code)


def test_image_for_another_sm_is_an_image_error(machine: Machine) -> None:
    device = PycudaDevice(0)
    with pytest.raises(ImageError, match="no kernel image"):
        device.load_module(b"\x7fELF")
    with pytest.raises(ImageError, match="as bytes"):
        device.load_module(TRIAL)


def test_no_gpu_is_said(machine: Machine) -> None:
    machine.fail["cuInit"] = 100
    with pytest.raises(NoDeviceError, match="no CUDA-capable device"):
        open_device("pycuda")
    with pytest.raises(NoDeviceError, match="invalid device ordinal"):
        open_device("pycuda", 7)


def test_pycuda_that_cannot_be_imported_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    with pytest.raises(NoDeviceError, match=r"pycuda\.driver") as caught:
        PycudaDevice()
    assert caught.value.hint == "pip install pycuda"


def test_missing_libcuda_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    with pytest.raises(NoDeviceError, match=r"libcuda\.so\.1: cannot open"):
        pycuda_context.driver_library()
