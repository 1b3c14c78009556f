"""What CUDA's error codes mean here. Source: the documentation of CUresult in CUDA 12.9 and 13."""

from __future__ import annotations

from kernels.errors import DeviceError, ImageError, KernelError, NoDeviceError, OutOfMemoryError, StickyError

INVALID_VALUE = 1
OUT_OF_MEMORY = 2
INVALID_HANDLE = 400
NOT_FOUND = 500
NOT_READY = 600
LAUNCH_FAILED = 719
CAPTURE_UNSUPPORTED = 900
CAPTURE_INVALIDATED = 901

# "Leaves the process in an inconsistent state", or says that the context cannot be used any more.
STICKY = frozenset({214, 220, 226, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 721, 810, 911})
IMAGE = frozenset({200, 209, 218, 221, 222, 223, 300, 302, 303, NOT_FOUND})
NO_DEVICE = frozenset({3, 34, 35, 46, 100, 101, 802, 803, 804})

# pycuda hands over the driver's text alone (cuGetErrorString), never the code.
TEXTS = {
    "invalid argument": INVALID_VALUE,
    "out of memory": OUT_OF_MEMORY,
    "initialization error": 3,
    "no CUDA-capable device is detected": 100,
    "invalid device ordinal": 101,
    "device kernel image is invalid": 200,
    "invalid device context": 201,
    "no kernel image is available for execution on the device": 209,
    "uncorrectable ECC error encountered": 214,
    "a PTX JIT compilation failed": 218,
    "uncorrectable NVLink error detected during the execution": 220,
    "PTX JIT compiler library not found": 221,
    "the provided PTX was compiled with an unsupported toolchain": 222,
    "PTX JIT compilation was disabled": 223,
    "invalid resource handle": INVALID_HANDLE,
    "named symbol not found": NOT_FOUND,
    "an illegal memory access was encountered": 700,
    "too many resources requested for launch": 701,
    "the launch timed out and was terminated": 702,
    "context is destroyed": 709,
    "device-side assert triggered": 710,
    "hardware stack error": 714,
    "an illegal instruction was encountered": 715,
    "misaligned address": 716,
    "operation not supported on global/shared address space": 717,
    "invalid program counter": 718,
    "unspecified launch failure": LAUNCH_FAILED,
    "operation not permitted when stream is capturing": CAPTURE_UNSUPPORTED,
    "operation failed due to a previous error during capture": CAPTURE_INVALIDATED,
}
UNKNOWN = 999


def code_of(text: str) -> int:
    """Return the code whose text a message of the driver begins with; 999 (unknown) for any other."""
    return next((code for known, code in TEXTS.items() if text.startswith(known)), UNKNOWN)


def driver_error(call: str, code: int, text: str, *, requested: int | None = None) -> KernelError:
    """Make the error for a driver call that returned ``code``; ``requested``: the bytes an allocation asked for."""
    message = f"{call} failed: {text} ({code})"
    if code == OUT_OF_MEMORY and requested is not None:
        return OutOfMemoryError(
            f"{requested} bytes were asked for: {message}", requested=requested, call=call, code=code
        )
    if code in STICKY:
        return StickyError(message, call=call, code=code, hint="start a new process")
    if code in IMAGE:
        return ImageError(message, hint="python -m kernels.build --arch <sm of this device>, or VLM_JIT=1")
    if code in NO_DEVICE:
        return NoDeviceError(message, call=call, code=code, hint="nvidia-smi")
    return DeviceError(message, call=call, code=code)
