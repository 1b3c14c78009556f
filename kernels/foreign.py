"""Arrays of other libraries as DeviceArrays, without a copy: ``__cuda_array_interface__`` or DLPack.

Sources: the CUDA array interface, version 3 (Numba's documentation); DLPack 1.0 (dlpack.h) and its Python protocol.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from kernels.arrays import ALIGNMENT, DeviceArray, DType
from kernels.dlpack import CPU, GPUS, take_dlpack
from kernels.driver.protocol import Device, Stream
from kernels.errors import ArrayError

# typestr of the array interface; numpy's bfloat16 extensions and torch say two opaque bytes.
TYPES: Mapping[str, DType] = {
    "<f2": "f16",
    "<V2": "bf16",
    "|V2": "bf16",
    "<f4": "f32",
    "|i1": "i8",
    "|u1": "u8",
    "<i4": "i32",
    "<u4": "u32",
    "<u8": "u64",
}
LEGACY_DEFAULT = 1  # how both protocols call the default stream, whose handle is 0


def as_device_array(
    value: object,
    device: Device,
    stream: Stream | None = None,
    *,
    dtypes: DType | Sequence[DType] | None = None,
    writable: bool = False,
) -> DeviceArray:
    """View ``value`` as an array that kernels take; the result keeps it alive.

    value: a DeviceArray, or anything with ``__cuda_array_interface__`` or ``__dlpack__`` (torch, cupy, pycuda, numba)
    on the device's own GPU. Host memory through DLPack stands for device memory on the emulator alone.
    stream: where the array will be used; it is made to wait for the producer's work. Without it that work must be
    done, or be on the default stream.
    dtypes: what is allowed; None: whatever kernels know. writable: refuse what its owner calls read-only.
    Raises ArrayError for another dtype, an array that is not contiguous in row-major order, is empty, or does not
    begin at a multiple of 16 bytes.
    """
    if isinstance(value, DeviceArray):
        array = value
    elif getattr(value, "__cuda_array_interface__", None) is not None:
        array = _from_interface(value, device, stream, writable)
    elif hasattr(value, "__dlpack__") and hasattr(value, "__dlpack_device__"):
        array = _from_dlpack(value, device, stream, writable)
    else:
        raise ArrayError(
            f"a {type(value).__name__} is no device array",
            hint="hand in an object with __cuda_array_interface__ or __dlpack__",
        )
    _check(type(value).__name__, array, dtypes)
    return array


def _check(name: str, array: DeviceArray, dtypes: DType | Sequence[DType] | None) -> None:
    allowed = (dtypes,) if isinstance(dtypes, str) else dtypes
    if allowed is not None and array.dtype not in allowed:
        raise ArrayError(f"the {name} is {array.dtype}, expected {' or '.join(allowed)}")
    if array.size == 0:
        raise ArrayError(f"the {name} of shape {list(array.shape)} is empty")
    if array.ptr == 0 or array.ptr % ALIGNMENT:
        raise ArrayError(f"the {name} lies at {array.ptr:#x}, which is not a multiple of {ALIGNMENT} bytes")


def _from_interface(value: object, device: Device, stream: Stream | None, writable: bool) -> DeviceArray:
    facts: Mapping[str, Any] = value.__cuda_array_interface__  # type: ignore[attr-defined]
    name = type(value).__name__
    if int(facts.get("version", 0)) < 2:
        raise ArrayError(f"the {name} has version {facts.get('version')} of __cuda_array_interface__, 2 or 3 are known")
    dtype = TYPES.get(facts["typestr"])
    if dtype is None:
        raise ArrayError(f"the {name} has the type {facts['typestr']}, kernels know {', '.join(TYPES)}")
    if facts.get("mask") is not None:
        raise ArrayError(f"the {name} has a mask, which kernels do not know")
    ptr, read_only = facts["data"]
    if writable and read_only:
        raise ArrayError(f"the {name} is read-only")
    array = DeviceArray(int(ptr or 0), tuple(int(size) for size in facts["shape"]), dtype, value)
    strides = facts.get("strides")
    if strides is not None:
        _check_strides(name, array.shape, [stride / array.itemsize for stride in strides])
    producer = facts.get("stream")
    if producer is not None and stream is not None:
        _wait_for(device, stream, int(producer))
    return array


def _wait_for(device: Device, stream: Stream, producer: int) -> None:
    """Let ``stream`` wait for what the producer has enqueued so far."""
    handle = 0 if producer == LEGACY_DEFAULT else producer
    if stream.handle == handle:
        return
    theirs, event = device.wrap_stream(handle), device.create_event()
    try:
        event.record(theirs)
        stream.wait(event)
    finally:
        event.close()
        theirs.close()


def _from_dlpack(value: Any, device: Device, stream: Stream | None, writable: bool) -> DeviceArray:
    name, kind = type(value).__name__, int(value.__dlpack_device__()[0])
    if kind not in GPUS and not (kind == CPU and device.backend == "emulator"):
        where = "in host memory" if kind == CPU else f"on a device of DLPack's kind {kind}"
        raise ArrayError(f"the {name} lies {where}, expected the memory of {device.name}")
    consumer = None if kind == CPU or stream is None else stream.handle or LEGACY_DEFAULT
    tensor = take_dlpack(value, consumer)
    if writable and tensor.read_only:
        raise ArrayError(f"the {name} is read-only")
    if tensor.strides is not None:
        _check_strides(name, tensor.shape, tensor.strides)
    return DeviceArray(tensor.ptr, tensor.shape, tensor.dtype, tensor.owner)


def _check_strides(name: str, shape: Sequence[int], strides: Sequence[float]) -> None:
    """Strides in elements; those of dimensions of length 1 do not matter, nor any of an empty array."""
    expected = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    wrong = [have != want for have, want, size in zip(strides, expected, shape, strict=True) if size != 1]
    if any(wrong) and math.prod(shape) > 0:
        raise ArrayError(
            f"the {name} of shape {list(shape)} is not contiguous in row-major order", hint="hand in a contiguous copy"
        )
