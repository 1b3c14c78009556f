"""DLPack capsules are consumed once, and given back once: numpy's, torch's and some made by hand."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest

from kernels.arrays import DeviceArray, from_bf16
from kernels.dlpack import DlpackOwner
from kernels.driver import Device
from kernels.driver.cuda_bindings import BindingsDevice
from kernels.errors import ArrayError
from kernels.foreign import as_device_array
from tests.kernels.capsules import Producer
from tests.kernels.driver.machine import Machine


def read(device: Device, array: DeviceArray, dtype: Any) -> np.ndarray[Any, Any]:
    stream, found = device.create_stream(), np.empty(array.shape, dtype)
    device.copy_out(found, array.ptr, stream)
    stream.synchronize()
    return found


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


def test_owner_releases_once(device: Device) -> None:
    producer = Producer()
    owner = as_device_array(producer, device).owner
    assert isinstance(owner, DlpackOwner)
    owner.release()
    owner.release()
    del owner
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
