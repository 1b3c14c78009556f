"""What the kernels and the driver refuse. The runtime turns these into its own errors; `hint` says what to do.

KernelError
├── ArrayError          a pointer, dtype, shape or alignment that a kernel does not take
├── ImageError          no compiled code for this device, or none that fits
├── CompileError        a compiler is missing or refused the source
└── DeviceError         the driver refused a call (``code``, ``call``)
    ├── NoDeviceError       no driver, or no device
    ├── OutOfMemoryError    ``requested`` bytes were not to be had
    └── StickyError         the context is lost: nothing on it works any more, a new process is needed
"""

from __future__ import annotations


class KernelError(Exception):
    """Root of this package's errors."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class ArrayError(KernelError):
    """An array that a kernel does not take: null or misaligned pointer, wrong dtype or shape, not contiguous."""


class ImageError(KernelError):
    """No compiled code that this device can run."""


class CompileError(KernelError):
    """A compiler that is missing, or refused a source."""


class DeviceError(KernelError):
    """A driver call that failed: ``call`` is its name, ``code`` what it returned."""

    def __init__(self, message: str, *, call: str = "", code: int = 0, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.call = call
        self.code = code


class NoDeviceError(DeviceError):
    """No driver, or no device that it knows."""


class OutOfMemoryError(DeviceError):
    """An allocation of ``requested`` bytes was refused."""

    def __init__(self, message: str, *, requested: int, call: str = "", code: int = 0, hint: str | None = None) -> None:
        super().__init__(message, call=call, code=code, hint=hint)
        self.requested = requested


class StickyError(DeviceError):
    """The context is lost (illegal address, launch failure, ECC): every later call on it fails too."""
