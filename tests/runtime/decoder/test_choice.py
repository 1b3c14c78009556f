"""Which decoder a bundle is opened with, and that a fall back is said."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from kernels.driver.opening import open_device
from kernels.errors import DeviceError, NoDeviceError
from runtime.bundle import Bundle
from runtime.bundle.manifest import T16Decoder
from runtime.decoder import CudaOptions, find_device
from runtime.errors import BundleError, EngineError, InputError
from tests.runtime.fakes import fake_bundle


@pytest.fixture
def both(tmp_path: Path) -> Bundle:
    """A bundle that says it has both decoders."""
    bundle = fake_bundle(tmp_path / "bundle")
    section = replace(bundle.manifest.decoder, kinds=("onnx", "cuda"), t16=T16Decoder("decoder/t16.safetensors", "f16"))
    return Bundle(bundle.path, replace(bundle.manifest, decoder=section))


def failing_driver(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def refuse(backend: str = "auto", ordinal: int = 0) -> None:
        raise error

    monkeypatch.setattr("kernels.driver.open_device", refuse)


@pytest.fixture
def no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a CUDA driver."""
    failing_driver(monkeypatch, NoDeviceError("libcuda.so.1 is not there"))


def test_auto_without_a_device_takes_onnx_and_says_why(
    both: Bundle, no_driver: None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="runtime"):
        assert find_device(both, "auto", CudaOptions()) is None
    assert "libcuda.so.1 is not there" in caplog.text and "'onnx' runs on the CPU" in caplog.text


def test_auto_without_a_device_and_without_onnx_is_refused(both: Bundle, no_driver: None) -> None:
    section = replace(both.manifest.decoder, kinds=("cuda",), onnx=None)
    alone = Bundle(both.path, replace(both.manifest, decoder=section))
    with pytest.raises(EngineError, match="libcuda.so.1 is not there") as caught:
        find_device(alone, "auto", CudaOptions())
    assert "runtime.doctor" in str(caught.value.hint)


def test_cuda_without_a_device_is_refused_and_never_falls_back(both: Bundle, no_driver: None) -> None:
    with pytest.raises(EngineError, match="found no device: libcuda.so.1 is not there") as caught:
        find_device(both, "cuda", CudaOptions())
    assert "decoder='onnx'" in str(caught.value.hint)


@pytest.mark.parametrize("kind", ["auto", "cuda"])
def test_a_driver_that_fails_otherwise_is_an_error_for_auto_too(
    both: Bundle, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing_driver(monkeypatch, DeviceError("cuInit: system not yet initialized"))
    with pytest.raises(EngineError, match="cuInit"):
        find_device(both, kind, CudaOptions())  # type: ignore[arg-type]


class OldDevice:
    """A GPU from before the kernels' instructions."""

    backend, name, compute_capability, driver_version = "cuda_bindings", "old GPU", (6, 1), 12060

    def __init__(self) -> None:
        self.closed = False

    def close(self) -> None:
        self.closed = True


def test_auto_takes_onnx_and_says_why_where_no_code_runs_on_the_device(
    both: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    device = OldDevice()
    monkeypatch.setattr("kernels.driver.open_device", lambda backend: device)
    assert find_device(both, "auto", CudaOptions()) is None
    assert device.closed
    assert "compute capability 6.1" in caplog.text and "'onnx' runs on the CPU" in caplog.text
    found = find_device(both, "cuda", CudaOptions())  # asked for by name: the error comes when it is opened
    assert found is not None and found.device is device


@pytest.mark.parametrize("kind", ["auto", "cuda"])
def test_a_device_is_taken_where_there_is_one(both: Bundle, kind: str) -> None:
    found = find_device(both, kind, CudaOptions(device="emulator"))  # type: ignore[arg-type]
    assert found is not None and found.owned and found.device.backend == "emulator"
    found.close()
    with pytest.raises(DeviceError):
        found.device.create_stream()


def test_a_device_of_the_caller_is_left_open(both: Bundle) -> None:
    device = open_device("emulator")
    found = find_device(both, "cuda", CudaOptions(device=device))
    assert found is not None and found.device is device
    found.close()
    device.create_stream().close()
    device.close()


def test_onnx_asks_for_no_device(both: Bundle, no_driver: None) -> None:
    assert find_device(both, "onnx", CudaOptions()) is None


def test_a_bundle_without_the_weights_is_refused_for_cuda_and_onnx_for_auto(tmp_path: Path) -> None:
    bundle = fake_bundle(tmp_path / "bundle")
    assert find_device(bundle, "auto", CudaOptions(device="emulator")) is None
    with pytest.raises(BundleError, match="has no decoder 'cuda', only onnx"):
        find_device(bundle, "cuda", CudaOptions(device="emulator"))


def test_an_unknown_kind_is_refused(both: Bundle) -> None:
    with pytest.raises(InputError, match="'tensorrt' is not known"):
        find_device(both, "tensorrt", CudaOptions())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kv": "f8"}, "kv is 'f8'"),
        ({"embeddings": "f32"}, "embeddings is 'f32'"),
        ({"device": "cpu"}, "device is 'cpu'"),
    ],
)
def test_wrong_options_are_refused_with_what_there_is(options: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        CudaOptions(**options)  # type: ignore[arg-type]
    assert "one of" in str(caught.value.hint)
