"""The example shares context, stream and arrays with an application on pycuda; here pycuda is a stand-in."""

from __future__ import annotations

import importlib
import os
import re
import sys
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from kernels import loading
from kernels.emulator import build_library
from tests.kernels.driver.backends import needs_compiler, stand_ins
from tests.kernels.driver.machine import Machine

EXAMPLE = "scripts.examples.share_context_pycuda"
pytestmark = needs_compiler


def gpuarray_module(driver: Any) -> types.ModuleType:
    """pycuda.gpuarray with what the example uses of it; strides and keys of the interface as pycuda gives them."""

    class GPUArray:
        def __init__(self, shape: tuple[int, ...], dtype: Any) -> None:
            self.shape, self.dtype = shape, np.dtype(dtype)
            self.strides = np.empty(shape, dtype).strides
            self.gpudata = driver.mem_alloc(int(np.prod(shape)) * self.dtype.itemsize)

        @property
        def __cuda_array_interface__(self) -> dict[str, Any]:
            data = int(self.gpudata), False
            facts = {"shape": self.shape, "strides": self.strides, "data": data, "typestr": self.dtype.str}
            return {**facts, "stream": None, "version": 3}

        def get(self) -> np.ndarray[Any, Any]:
            found = np.empty(self.shape, self.dtype)
            driver.memcpy_dtoh_async(found, int(self.gpudata))
            return found

    def to_gpu(values: np.ndarray[Any, Any]) -> GPUArray:
        made = GPUArray(values.shape, values.dtype)
        driver.memcpy_htod_async(int(made.gpudata), np.ascontiguousarray(values))
        return made

    module = types.ModuleType("pycuda.gpuarray")
    for name, value in {"GPUArray": GPUArray, "empty": GPUArray, "to_gpu": to_gpu}.items():
        setattr(module, name, value)
    return module


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    with stand_ins(monkeypatch) as made:
        module = gpuarray_module(sys.modules["pycuda.driver"])
        monkeypatch.setitem(sys.modules, "pycuda.gpuarray", module)
        monkeypatch.setattr(sys.modules["pycuda"], "gpuarray", module, raising=False)
        monkeypatch.setattr("kernels.images.image_for", lambda device, source: os.fsencode(build_library(source)))
        monkeypatch.delitem(sys.modules, EXAMPLE, raising=False)
        yield made
        sys.modules.pop(EXAMPLE, None)


def test_example_computes_in_the_applications_context_without_a_copy(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    importlib.import_module(EXAMPLE).main()
    told = re.search(r"largest difference from float64: (\S+)", capsys.readouterr().out)
    # Values of y stay below 16: half an ulp of f16 there is 2**-8; the fp32 sums add less than a tenth of it.
    assert told is not None and float(told[1]) < 1.1 * 2**-8
    assert machine.stack == []
    copies = [name for name, *_ in machine.log if name.startswith("cuMemcpy")]
    assert copies == ["cuMemcpyHtoDAsync", "cuMemcpyHtoDAsync", "cuMemcpyDtoHAsync"], "the application's own alone"
    assert len(machine.calls("cuMemAlloc")) == 3
    assert not machine.calls("cuDevicePrimaryCtxRetain")
    ((stream_flags,),) = machine.calls("cuStreamCreate")
    assert stream_flags == 0, "the application's stream, and no other"


def test_kernel_ran_on_the_applications_stream(machine: Machine) -> None:
    assert loading.SOURCES["rmsnorm_residual_f16"] == "rmsnorm.cu"
    importlib.import_module(EXAMPLE).main()
    ((name, *_, stream),) = machine.calls("cuLaunchKernel")
    assert name == "rmsnorm_residual_f16"
    assert ("cuStreamSynchronize", stream) in machine.log
