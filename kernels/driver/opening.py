"""Which driver backend a process uses."""

from __future__ import annotations

import sys
from typing import Literal, get_args

from kernels.driver.protocol import Device
from kernels.errors import DeviceError

Backend = Literal["auto", "cuda_bindings", "pycuda", "emulator"]


def open_device(backend: Backend = "auto", ordinal: int | None = None) -> Device:
    """Open a device; the caller closes it.

    backend: ``auto`` is pycuda when the application has imported it, cuda_bindings otherwise, and never the emulator.
    ordinal: which GPU; None: the one of the application's current context, the first without one.
    Raises NoDeviceError without a driver, a device or the backend's library.
    """
    if backend not in get_args(Backend):
        raise DeviceError(f"the driver backend {backend!r}, one of {', '.join(get_args(Backend))}")
    if backend == "auto":
        backend = "pycuda" if "pycuda" in sys.modules else "cuda_bindings"
    if backend == "emulator":
        from kernels.driver.emulator import EmulatorDevice

        return EmulatorDevice()
    if backend == "pycuda":
        from kernels.driver.pycuda import PycudaDevice

        return PycudaDevice(ordinal)
    from kernels.driver.cuda_bindings import BindingsDevice

    return BindingsDevice(ordinal)
