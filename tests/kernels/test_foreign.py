"""Arrays of other libraries are used where they lie, or refused by name."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from kernels.arrays import DeviceArray
from kernels.driver import Device
from kernels.driver.cuda_bindings import BindingsDevice
from kernels.errors import ArrayError
from kernels.foreign import as_device_array
from tests.kernels.driver.machine import Machine


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
