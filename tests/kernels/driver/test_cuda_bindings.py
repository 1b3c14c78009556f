"""The cuda_bindings backend: contexts left as found, every code typed, the names that the real package has."""

from __future__ import annotations

import ast
import inspect
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from kernels.driver import bindings_handles, cuda_bindings, cuda_calls, graphs, open_device
from kernels.driver.cuda_bindings import BindingsDevice
from kernels.driver.cuda_errors import IMAGE, NO_DEVICE, STICKY, TEXTS, code_of, driver_error
from kernels.errors import DeviceError, ImageError, NoDeviceError, OutOfMemoryError, StickyError
from tests.kernels.driver import bindings_standin
from tests.kernels.driver.backends import stand_ins
from tests.kernels.driver.machine import PRIMARY, Machine


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    with stand_ins(monkeypatch) as made:
        yield made


def test_primary_context_is_pushed_for_each_call_and_popped(machine: Machine) -> None:
    device = BindingsDevice(0)
    machine.log.clear()
    device.alloc(64)
    assert [name for name, *_ in machine.log] == ["cuCtxPushCurrent", "cuMemAlloc", "cuCtxPopCurrent"]
    assert machine.stack == []
    with pytest.raises(OutOfMemoryError):
        device.alloc(1 << 45)
    assert machine.stack == []
    device.close()
    assert not +machine.retained


def test_context_that_is_current_already_is_not_pushed(machine: Machine) -> None:
    machine.push(machine.retain(0))  # torch's
    device = BindingsDevice()
    machine.log.clear()
    device.alloc(64)
    device.close()
    assert not machine.calls("cuCtxPushCurrent") and not machine.calls("cuCtxPopCurrent")
    assert machine.stack == [PRIMARY[0]] and machine.retained[PRIMARY[0]] == 1


def test_context_of_another_device_is_left_and_found_again(machine: Machine) -> None:
    machine.push(machine.retain(1))
    device = BindingsDevice(0)
    stream = device.create_stream()
    stream.synchronize()
    device.close()
    assert machine.stack == [PRIMARY[1]]


def test_device_is_the_one_of_the_current_context_unless_asked_for(machine: Machine) -> None:
    machine.push(machine.retain(1))
    BindingsDevice()
    assert machine.retained[PRIMARY[1]] == 2
    BindingsDevice(0)
    assert machine.retained[PRIMARY[0]] == 1
    with pytest.raises(NoDeviceError, match="invalid device ordinal"):
        BindingsDevice(5)


class TorchStream:
    def __init__(self, handle: int) -> None:
        self.cuda_stream = handle


class CoreStream:
    def __init__(self, handle: int) -> None:
        self._handle = handle

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self._handle


@pytest.mark.parametrize("kind", [int, TorchStream, CoreStream])
def test_streams_of_other_libraries_are_used_and_left(machine: Machine, kind: type) -> None:
    device = BindingsDevice(0)
    theirs = device.create_stream()
    stream, memory = device.wrap_stream(kind(theirs.handle)), device.alloc(8)
    device.fill(memory.ptr, 3, 8, stream)
    assert machine.calls("cuMemsetD8Async") == [(memory.ptr, 3, 8, theirs.handle)]
    stream.close()
    assert not machine.calls("cuStreamDestroy")
    with pytest.raises(DeviceError, match="a str is no CUDA stream"):
        device.wrap_stream("7")


def test_capture_is_of_this_thread_and_leaves_nothing_behind(machine: Machine) -> None:
    device = BindingsDevice(0)
    stream = device.create_stream()
    with device.capture(stream) as capture:
        pass
    assert machine.calls("cuStreamBeginCapture") == [(stream.handle, 1)]
    capture.graph.close()
    assert machine.kinds() == {"stream": 1}
    with pytest.raises(DeviceError, match="default stream cannot be captured"):
        device.capture(device.wrap_stream(0)).__enter__()


def test_graph_that_cannot_be_instantiated_leaves_nothing_behind(machine: Machine) -> None:
    device = BindingsDevice(0)
    stream = device.create_stream()
    machine.fail["cuGraphInstantiate"] = 2
    with pytest.raises(DeviceError, match="cuGraphInstantiate"):
        with device.capture(stream):
            pass
    assert machine.kinds() == {"stream": 1} and device.live()["graph"] == 0
    device.alloc(8).free()


@pytest.mark.parametrize("invalid", [False, True])
def test_capture_whose_block_fails_is_ended_and_dropped(machine: Machine, invalid: bool) -> None:
    device = BindingsDevice(0)
    stream = device.create_stream()
    with pytest.raises(ZeroDivisionError):
        with device.capture(stream):
            if invalid:
                machine.fail["cuStreamEndCapture"] = 901
            raise ZeroDivisionError
    assert len(machine.calls("cuStreamEndCapture")) == 1
    assert machine.kinds() == {"stream": 1} and machine.stack == []


def test_limit_of_shared_memory_is_the_one_with_opt_in(machine: Machine) -> None:
    device = BindingsDevice(0)
    assert device.shared_limit_bytes == 163 * 1024


def test_pinned_memory_that_cannot_be_mapped_is_given_back(machine: Machine) -> None:
    device = BindingsDevice(0)
    machine.fail["cuMemHostGetDevicePointer"] = 1
    with pytest.raises(DeviceError, match="cuMemHostGetDevicePointer"):
        device.pinned(16, mapped=True)
    assert device.live()["pinned"] == 0 and machine.kinds() == {}


def test_after_a_sticky_error_closing_makes_no_more_calls(machine: Machine) -> None:
    device = BindingsDevice(0)
    memory, stream = device.alloc(8), device.create_stream()
    machine.fail["cuStreamSynchronize"] = 700
    with pytest.raises(StickyError, match="illegal memory access"):
        stream.synchronize()
    machine.log.clear()
    memory.free()
    stream.close()
    device.close()
    assert machine.log == []
    assert not any(device.live().values())


def test_query_tells_unfinished_from_failed(machine: Machine) -> None:
    device = BindingsDevice(0)
    event = device.create_event()
    machine.fail["cuEventQuery"] = 600
    assert not event.done()
    assert event.done()
    machine.fail["cuEventQuery"] = 719
    with pytest.raises(StickyError):
        event.done()


def test_code_without_a_text_is_told_by_its_number(machine: Machine) -> None:
    device = BindingsDevice(0)
    machine.fail["cuMemAlloc"] = 888
    with pytest.raises(DeviceError, match=r"cuMemAlloc failed: unknown error \(888\)"):
        device.alloc(8)


def test_no_gpu_is_said(machine: Machine) -> None:
    machine.fail["cuInit"] = 100
    with pytest.raises(NoDeviceError, match="no CUDA-capable device") as caught:
        open_device("cuda_bindings")
    assert caught.value.code == 100


def test_missing_package_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", None)
    with pytest.raises(NoDeviceError, match=r"cuda\.bindings\.driver") as caught:
        open_device("cuda_bindings")
    assert caught.value.hint == "pip install cuda-bindings"


def test_missing_driver_is_said(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_library(flags: int) -> None:
        raise RuntimeError("Failed to dlopen libcuda.so.1")

    monkeypatch.setattr(sys.modules["cuda.bindings.driver"], "cuInit", no_library)
    with pytest.raises(NoDeviceError, match=r"no CUDA driver: Failed to dlopen libcuda\.so\.1"):
        open_device("cuda_bindings")


@pytest.mark.parametrize(
    ("code", "kind"),
    [(700, StickyError), (214, StickyError), (719, StickyError), (209, ImageError), (218, ImageError)]
    + [(100, NoDeviceError), (803, NoDeviceError), (1, DeviceError), (701, DeviceError), (720, DeviceError)],
)
def test_codes_have_kinds(code: int, kind: type[Exception]) -> None:
    error = driver_error("cuCall", code, "text")
    assert type(error) is kind
    assert str(error) == f"cuCall failed: text ({code})"


def test_out_of_memory_has_the_bytes_only_where_bytes_were_asked_for() -> None:
    error = driver_error("cuMemAlloc", 2, "out of memory", requested=77)
    assert isinstance(error, OutOfMemoryError) and error.requested == 77
    assert type(driver_error("cuGraphInstantiate", 2, "out of memory")) is DeviceError


def test_texts_are_told_apart() -> None:
    assert all(code_of(f"{text} - more") == code for text, code in TEXTS.items())
    assert code_of("something new") == 999


# The published package, where it is installed (it imports without a driver).


def published() -> types.ModuleType:
    driver: types.ModuleType = pytest.importorskip("cuda.bindings.driver")
    return driver


def names_used() -> set[str]:
    """Every function, class and constant of the driver that the backends name."""
    found: set[str] = set()
    for module in (cuda_bindings, bindings_handles, cuda_calls, graphs):
        for node in ast.walk(ast.parse(Path(module.__file__).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("cu"):
                found.add(node.value)  # handed to Calls by name
            elif isinstance(node, ast.Attribute) and node.attr.startswith(("cu", "CU")):
                found.add(node.attr)
    names = {name for name in found if name.isidentifier() and not name.endswith("_")}
    return {name for name in names if name.startswith("CU") or name[2:3].isupper()}


def test_published_package_has_every_name() -> None:
    driver, names = published(), names_used()
    assert len(names) > 40
    members = {member for kind in vars(driver).values() if hasattr(kind, "__members__") for member in kind.__members__}
    assert [name for name in sorted(names) if not hasattr(driver, name) and name not in members] == []


def test_stand_in_has_the_published_signatures() -> None:
    driver, machine, checked = published(), Machine(), 0
    for group in ("_device_calls", "_memory_calls", "_stream_calls", "_module_calls", "_graph_calls"):
        for function in getattr(bindings_standin, group)(machine):
            theirs = inspect.signature(getattr(driver, function.__name__)).parameters
            assert list(inspect.signature(function).parameters) == list(theirs), function.__name__
            checked += 1
    assert checked > 40


def test_attributes_and_codes_have_the_published_values() -> None:
    driver = published()
    for kind in (
        bindings_standin.CUdevice_attribute,
        bindings_standin.CUfunction_attribute,
        bindings_standin.CUstreamCaptureMode,
    ):
        for member in kind:
            assert int(getattr(getattr(driver, kind.__name__), member.name)) == int(member)
    codes = {int(code): code.name for code in driver.CUresult}
    unknown = (STICKY | IMAGE | NO_DEVICE) - set(codes)
    assert unknown <= {35, 226, 721}, "codes that older versions lack"
    documented = {int(code) for code in driver.CUresult if "inconsistent state" in (code.__doc__ or "")}
    assert documented <= STICKY
    assert {code for code in STICKY if code in codes} >= documented
