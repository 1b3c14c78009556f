"""Which driver backend a process uses."""

from __future__ import annotations

import sys
from typing import Literal

from kernels.driver.protocol import Device
from kernels.errors import NoDeviceError

Backend = Literal["auto", "cuda_bindings", "pycuda", "emulator"]


def open_device(backend: Backend = "auto", ordinal: int = 0) -> Device:
    """Open a device; the caller closes it.

    backend: ``auto`` is pycuda when the application has imported it, cuda_bindings otherwise, and never the emulator.
    ordinal: which GPU.
    """
    if backend == "emulator":
        from kernels.driver.emulator import EmulatorDevice

        return EmulatorDevice()
    chosen = ("pycuda" if "pycuda" in sys.modules else "cuda_bindings") if backend == "auto" else backend
    raise NoDeviceError(f"the backend {chosen} found no driver", hint="--device emulator")
