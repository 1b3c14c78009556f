"""Opening every backend for a test: the emulator, the two others on stand-ins, and on the real libraries."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from kernels.driver import Device, open_device, pycuda_context
from kernels.driver.protocol import Function, Image, Module, Stream
from kernels.emulator import build_library
from kernels.errors import NoDeviceError
from kernels.images import image_for
from tests.kernels.driver import bindings_standin, pycuda_standin
from tests.kernels.driver.machine import Machine

ONE = (1, 1, 1)
TRIAL = Path(__file__).with_name("trial.cu")
STUB = "VLM_TEST_STUB_CUDA"  # where libcuda.so.1 is stub_cuda.cpp: the trial kernels as the emulator's library
BACKENDS = [
    "emulator",
    "pycuda stand-in",
    "cuda_bindings stand-in",
    pytest.param("pycuda", marks=pytest.mark.gpu),
    pytest.param("cuda_bindings", marks=pytest.mark.gpu),
]
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="the emulator needs g++")


@dataclass
class Bench:
    """One backend: how to open a device, and what its kernels' image is. machine: of a stand-in."""

    open: Callable[[], Device]
    image: Callable[[Device], Image]
    machine: Machine | None = None


@contextmanager
def bench_of(name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """Make one of BACKENDS; skips where a real library or a GPU is missing."""
    if name == "emulator":
        yield Bench(lambda: open_device("emulator"), lambda device: build_library(TRIAL))
    elif name.endswith("stand-in"):
        backend: Literal["pycuda", "cuda_bindings"] = "pycuda" if name.startswith("pycuda") else "cuda_bindings"
        with stand_ins(monkeypatch) as machine:
            yield Bench(lambda: open_device(backend, 0), lambda device: os.fsencode(build_library(TRIAL)), machine)
    else:
        real: Literal["pycuda", "cuda_bindings"] = "pycuda" if name == "pycuda" else "cuda_bindings"
        if STUB in os.environ:  # it has no more functions than are called, and pycuda is linked against all
            sys.setdlopenflags(os.RTLD_LAZY)
        try:
            open_device(real, 0).close()
        except NoDeviceError as error:
            pytest.skip(f"no GPU for {name}: {error}")
        yield Bench(lambda: open_device(real, 0), real_image)


def real_image(device: Device) -> Image:
    """What a GPU runs; for the stub the path of an emulator's library."""
    return os.environb[STUB.encode()] + b"\0" if STUB in os.environ else image_for(device, TRIAL)


@contextmanager
def stand_ins(monkeypatch: pytest.MonkeyPatch, machine: Machine | None = None) -> Iterator[Machine]:
    """Put both stand-ins, over one machine, in the place of the libraries."""
    machine = machine or Machine()
    for modules in (pycuda_standin.make_modules(machine), bindings_standin.make_modules(machine)):
        for name, module in modules.items():
            monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(pycuda_context, "driver_library", lambda: pycuda_standin.DriverLibrary(machine))
    yield machine
    machine.close()


@dataclass
class Open:
    """A device with a stream and the trial kernels."""

    device: Device
    stream: Stream
    module: Module

    def function(self, name: str) -> Function:
        return self.module.function(name)

    def upload(self, values: np.ndarray[Any, Any]) -> int:
        memory = self.device.alloc(values.nbytes)
        self.device.copy_in(memory.ptr, np.ascontiguousarray(values), self.stream)
        self.stream.synchronize()
        return memory.ptr

    def download(self, ptr: int, count: int, dtype: Any = np.float32) -> np.ndarray[Any, Any]:
        found = np.empty(count, dtype)
        self.device.copy_out(found, ptr, self.stream)
        self.stream.synchronize()
        return found


def add(opened: Open, x: int, y: int, factor: float, count: int) -> None:
    opened.function("add_scaled").launch(ONE, (32, 1, 1), 0, opened.stream, "PPfi", [x, y, factor, count])
