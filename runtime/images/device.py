"""Images that lie in other libraries' memory: DLPack on the host, ``__cuda_array_interface__`` on a GPU."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.errors import ImageError

_HOST_DEVICES = {1, 3, 13}  # kDLCPU, kDLCUDAHost, kDLCUDAManaged of dlpack.h
_COPY_HINT = "copy it to the host first: image.cpu() (torch), image.get() (cupy)"
_ATTRIBUTE_CONTEXT = 1  # CU_POINTER_ATTRIBUTE_CONTEXT
_MAX_SPAN_BYTES = 1 << 30

CopyToHost = Callable[[int, "npt.NDArray[np.uint8]", "int | None"], None]


def array_from_dlpack(obj: Any) -> npt.NDArray[Any]:
    """View a DLPack object of host memory as an array. Raises ImageError for device memory and unknown types."""
    device = int(obj.__dlpack_device__()[0])
    if device not in _HOST_DEVICES:
        raise ImageError(f"the DLPack image lies on device type {device}, not in host memory", hint=_COPY_HINT)
    try:
        return np.from_dlpack(obj)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise ImageError(
            f"the DLPack image of type {type(obj).__qualname__} cannot be viewed as an array ({type(error).__name__})",
            hint="hand over a contiguous u8 tensor without gradients: image.detach().contiguous()",
        ) from None


def array_from_cuda(obj: Any, copy: CopyToHost | None = None) -> npt.NDArray[Any]:
    """Copy an object with ``__cuda_array_interface__`` (version 2 or 3) to the host.

    ``copy(pointer, out u8 [n], stream)`` moves the bytes; the default asks the CUDA driver, after the producer's stream
    is done. Raises ImageError when there is no driver, when it refuses, and for masked arrays.
    """
    interface = obj.__cuda_array_interface__
    if interface.get("mask") is not None:
        raise ImageError("the CUDA image has a mask", hint="pass the array without its mask")
    dtype = np.dtype(interface["typestr"])
    shape = tuple(int(side) for side in interface["shape"])
    strides = interface.get("strides") or _row_major(shape, dtype.itemsize)
    if 0 in shape:
        return np.empty(shape, dtype)
    ends = [step * (side - 1) for step, side in zip(strides, shape, strict=True)]
    below, above = sum(min(end, 0) for end in ends), sum(max(end, 0) for end in ends)
    span = above - below + dtype.itemsize
    if span > _MAX_SPAN_BYTES:
        limit = f"{_MAX_SPAN_BYTES:,}"
        raise ImageError(f"the CUDA image spans {span:,} bytes, the limit is {limit}", hint="make it smaller")
    host = np.empty(span, np.uint8)
    (copy or copy_with_driver)(int(interface["data"][0]) + below, host, interface.get("stream"))
    return np.ndarray(shape, dtype, buffer=host, offset=-below, strides=strides)


def copy_with_driver(pointer: int, out: npt.NDArray[np.uint8], stream: int | None) -> None:
    """Copy bytes from a device pointer through libcuda, in the context that owns the pointer."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        raise ImageError("the image lies on a GPU and there is no CUDA driver here", hint=_COPY_HINT) from None
    context = ctypes.c_void_p()
    source = ctypes.c_uint64(pointer)
    _check("cuInit", cuda.cuInit(0))
    _check("cuPointerGetAttribute", cuda.cuPointerGetAttribute(ctypes.byref(context), _ATTRIBUTE_CONTEXT, source))
    _check("cuCtxPushCurrent", cuda.cuCtxPushCurrent_v2(context))
    try:
        if stream is not None:
            _check("cuStreamSynchronize", cuda.cuStreamSynchronize(ctypes.c_void_p(stream)))
        size = ctypes.c_size_t(out.nbytes)
        _check("cuMemcpyDtoH", cuda.cuMemcpyDtoH_v2(ctypes.c_void_p(out.ctypes.data), source, size))
    finally:
        cuda.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))


def _check(call: str, code: int) -> None:
    if code != 0:
        raise ImageError(f"the image on the GPU cannot be copied: {call} returned {code}", hint=_COPY_HINT)


def _row_major(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    steps = [itemsize]
    for side in reversed(shape[1:]):
        steps.append(steps[-1] * side)
    return tuple(reversed(steps))
