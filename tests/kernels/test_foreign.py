"""Arrays of other libraries are used where they lie, or refused by name."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kernels.arrays import DeviceArray, from_bf16
from kernels.driver import Device, open_device
from kernels.driver.cuda_bindings import BindingsDevice
from kernels.errors import ArrayError
from kernels.foreign import as_device_array
from tests.kernels.capsules import Producer
from tests.kernels.driver.backends import stand_ins
from tests.kernels.driver.machine import Machine


@pytest.fixture
def device() -> Iterator[Device]:
    made = open_device("emulator")
    yield made
    made.close()


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    with stand_ins(monkeypatch) as made:
        yield made


def read(device: Device, array: DeviceArray, dtype: Any) -> np.ndarray[Any, Any]:
    stream, found = device.create_stream(), np.empty(array.shape, dtype)
    device.copy_out(found, array.ptr, stream)
    stream.synchronize()
    return found


def interface(**changes: Any) -> Any:
    facts = {"shape": (2, 4), "typestr": "<f4", "data": (0x1000, False), "version": 3, "strides": None}
    return SimpleNamespace(__cuda_array_interface__={**facts, **changes})


@pytest.mark.parametrize(
    ("typestr", "dtype"),
    [("<f2", "f16"), ("<V2", "bf16"), ("<f4", "f32"), ("|i1", "i8"), ("|u1", "u8"), ("<i4", "i32"), ("<u4", "u32")]
    + [("<u8", "u64")],
)
@pytest.mark.parametrize("version", [2, 3])
def test_array_interface_is_taken(device: Device, typestr: str, dtype: str, version: int) -> None:
    value = interface(typestr=typestr, version=version)
    array = as_device_array(value, device)
    assert (array.ptr, array.shape, array.dtype) == (0x1000, (2, 4), dtype)
    assert array.owner is value


def test_strides_of_a_contiguous_array_are_taken(device: Device) -> None:
    assert as_device_array(interface(strides=(16, 4)), device).shape == (2, 4)
    assert as_device_array(interface(shape=(1, 4), strides=(999, 4)), device).shape == (1, 4)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"version": 1}, "version 1 of __cuda_array_interface__"),
        ({"typestr": "<f8"}, "the type <f8"),
        ({"typestr": ">f4"}, "the type >f4"),
        ({"mask": object()}, "has a mask"),
        ({"strides": (4, 8)}, "not contiguous"),
        ({"strides": (32, 4)}, "not contiguous"),
        ({"strides": (16, 8)}, "not contiguous"),
        ({"data": (0x1008, False)}, "lies at 0x1008, which is not a multiple of 16"),
        ({"data": (0, False)}, "lies at 0x0"),
        ({"data": (0x1000, True)}, "read-only"),
        ({"shape": (0, 4)}, "empty"),
    ],
)
def test_array_interface_that_kernels_cannot_take_is_refused(
    device: Device, changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(ArrayError, match=told):
        as_device_array(interface(**changes), device, writable=True)


def test_dtype_is_checked_and_named(device: Device) -> None:
    assert as_device_array(interface(), device, dtypes=("f16", "f32")).dtype == "f32"
    with pytest.raises(ArrayError, match="the SimpleNamespace is f32, expected f16 or bf16"):
        as_device_array(interface(), device, dtypes=("f16", "bf16"))
    with pytest.raises(ArrayError, match="expected f16"):
        as_device_array(DeviceArray(0x100, (2,), "f32"), device, dtypes="f16")


def test_read_only_array_is_taken_for_reading(device: Device) -> None:
    assert as_device_array(interface(data=(0x1000, True)), device).ptr == 0x1000


def test_device_array_passes_and_anything_else_is_refused(device: Device) -> None:
    array = DeviceArray(0x100, (2,), "f32")
    assert as_device_array(array, device) is array
    with pytest.raises(ArrayError, match="a list is no device array"):
        as_device_array([1.0], device)


def test_consumer_waits_for_the_stream_of_the_producer(machine: Machine) -> None:
    device = BindingsDevice(0)
    theirs, ours = device.create_stream(), device.create_stream()
    as_device_array(interface(stream=theirs.handle), device, ours)
    ((event, recorded),) = machine.calls("cuEventRecord")
    assert recorded == theirs.handle
    assert machine.calls("cuStreamWaitEvent") == [(ours.handle, event)]
    assert machine.calls("cuEventDestroy") == [(event,)]
    as_device_array(interface(stream=1), device, ours)
    assert machine.calls("cuEventRecord")[1][1] == 0, "1 is the default stream, whose handle is 0"
    machine.log.clear()
    as_device_array(interface(stream=ours.handle), device, ours)
    as_device_array(interface(stream=None), device, ours)
    assert not machine.calls("cuEventRecord")
    device.close()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int8, np.uint8, np.int32, np.uint32, np.uint64])
def test_host_array_of_numpy_stands_for_device_memory_on_the_emulator(device: Device, dtype: Any) -> None:
    values = np.arange(12).reshape(3, 4).astype(dtype)
    array = as_device_array(values, device)
    assert (array.ptr, array.shape) == (values.ctypes.data, (3, 4))
    assert np.array_equal(read(device, array, dtype), values)


def test_numpy_array_that_is_read_only_is_not_written(device: Device) -> None:
    values = np.arange(4, dtype=np.float32)
    values.flags.writeable = False
    with pytest.raises(ArrayError, match="read-only|readonly"):
        as_device_array(values, device, writable=True)


def test_host_memory_is_refused_on_a_gpu(machine: Machine) -> None:
    with pytest.raises(ArrayError, match="the ndarray lies in host memory, expected the memory of Stand-in"):
        as_device_array(np.zeros(4, np.float32), BindingsDevice(0))


def test_values_outlive_their_producer(device: Device) -> None:
    array = as_device_array(np.arange(1024, dtype=np.float32), device)
    gc.collect()
    assert read(device, array, np.float32).tolist() == list(range(1024))


@pytest.mark.parametrize("versioned", [False, True])
def test_deleter_is_called_once_when_the_last_user_goes(device: Device, versioned: bool) -> None:
    producer = Producer(versioned=versioned)
    array = as_device_array(producer, device)
    assert (array.ptr, array.shape, array.dtype) == (producer.ptr, (2, 8), "f32")
    part = array.rows(1, 2)
    del array
    gc.collect()
    assert producer.deleted == 0
    del part
    gc.collect()
    assert producer.deleted == 1


@pytest.mark.parametrize("versioned", [False, True])
@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"code": 2, "bits": 64}, "type code 2 with 64 bits"),
        ({"code": 6, "bits": 8}, "type code 6"),
        ({"lanes": 2}, "2 lanes"),
        ({"strides": (1, 2)}, "not contiguous"),
        ({"byte_offset": 4}, "not a multiple of 16"),
        ({"shape": (0, 8)}, "empty"),
    ],
)
def test_refused_tensor_is_given_back(device: Device, versioned: bool, changes: dict[str, Any], told: str) -> None:
    producer = Producer(versioned=versioned, **changes)
    with pytest.raises(ArrayError, match=told):
        as_device_array(producer, device)
    gc.collect()
    assert producer.deleted == 1


def test_offset_in_bytes_is_added(device: Device) -> None:
    producer = Producer(byte_offset=32, shape=(1, 8))
    assert as_device_array(producer, device).ptr == producer.ptr + 32


def test_unknown_version_and_read_only_tensors_are_refused(device: Device) -> None:
    with pytest.raises(ArrayError, match=r"DLPack 2\.3"):
        as_device_array(Producer(versioned=True, version=(2, 3)), device)
    with pytest.raises(ArrayError, match="read-only"):
        as_device_array(Producer(versioned=True, flags=1), device, writable=True)
    assert as_device_array(Producer(versioned=True, flags=1), device).shape == (2, 8)


def test_capsule_is_used_once(device: Device) -> None:
    producer = Producer()
    capsule = producer.__dlpack__()
    producer.capsule = capsule
    first = as_device_array(producer, device)
    with pytest.raises(ArrayError, match="used before"):
        as_device_array(producer, device)
    assert first.ptr == producer.ptr


@pytest.mark.parametrize(("handle", "told"), [(None, None), (0, 1), (0x7000, 0x7000)])
def test_gpu_producer_is_told_the_consumers_stream(machine: Machine, handle: int | None, told: int | None) -> None:
    device, producer = BindingsDevice(0), Producer(kind=2)
    as_device_array(producer, device, None if handle is None else device.wrap_stream(handle))
    assert producer.streams == [told]
    with pytest.raises(ArrayError, match="kind 10"):
        as_device_array(Producer(kind=10), device)


def test_producer_from_before_version_1_is_taken(device: Device) -> None:
    producer = Producer(old_signature=True)
    assert as_device_array(producer, device).shape == (2, 8)


@pytest.mark.torch
def test_tensors_of_torch_are_taken_in_every_dtype(device: Device) -> None:
    torch = pytest.importorskip("torch")
    for kind in (torch.float16, torch.float32, torch.int8, torch.uint8, torch.int32):
        tensor = torch.arange(16).to(kind).reshape(2, 8)
        array = as_device_array(tensor, device)
        assert array.ptr == tensor.data_ptr()
        assert np.array_equal(read(device, array, tensor.numpy().dtype), tensor.numpy())
    wide = torch.tensor([[1.5, -2.25, 3e38, 1e-30]] * 2).to(torch.bfloat16)
    array = as_device_array(wide, device)
    assert array.dtype == "bf16"
    assert np.array_equal(from_bf16(read(device, array, np.uint16)), wide.float().numpy())


@pytest.mark.torch
def test_tensors_of_torch_that_kernels_cannot_take_are_refused(device: Device) -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(ArrayError, match="not contiguous"):
        as_device_array(torch.zeros(8, 4).T, device)
    with pytest.raises(ArrayError, match="gradient|grad"):
        as_device_array(torch.zeros(8, requires_grad=True), device)
    with pytest.raises(ArrayError, match="64 bits"):
        as_device_array(torch.zeros(8, dtype=torch.float64), device)
