"""`auto` follows the application, and never falls back to the emulator."""

from __future__ import annotations

import sys
import types

import pytest

from kernels.driver import open_device
from kernels.errors import DeviceError, NoDeviceError
from tests.kernels.driver.backends import stand_ins


def test_auto_is_pycuda_when_the_application_has_imported_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with stand_ins(monkeypatch):
        device = open_device()
        assert device.backend == "pycuda"
        device.close()


def test_auto_is_cuda_bindings_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    with stand_ins(monkeypatch):
        monkeypatch.delitem(sys.modules, "pycuda")
        monkeypatch.delitem(sys.modules, "pycuda.driver")
        device = open_device("auto")
        assert device.backend == "cuda_bindings"
        device.close()


def test_auto_without_a_gpu_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with stand_ins(monkeypatch) as machine:
        machine.fail["cuInit"] = 100
        with pytest.raises(NoDeviceError):
            open_device()
    monkeypatch.setitem(sys.modules, "pycuda", types.ModuleType("pycuda"))
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    with pytest.raises(NoDeviceError, match="pycuda"):
        open_device()


def test_unknown_backend_is_refused_with_the_known_ones() -> None:
    with pytest.raises(DeviceError, match="'cupy', one of auto, cuda_bindings, pycuda, emulator"):
        open_device("cupy")  # type: ignore[arg-type]


def test_emulator_is_opened_when_asked_for() -> None:
    device = open_device("emulator")
    assert device.backend == "emulator"
    device.close()
