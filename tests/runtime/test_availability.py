"""Installed libraries and engines, seen through distributions made for the test."""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

from runtime import availability
from runtime.version import __version__

Install = Callable[[str, str], None]


@pytest.fixture
def nothing_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """A machine without libraries; the function that is returned installs one."""

    def version(name: str) -> str:
        for found in metadata.distributions(path=[str(tmp_path)]):
            if found.metadata["Name"] == name:
                return found.version
        raise metadata.PackageNotFoundError(name)

    def install(name: str, number: str) -> None:
        folder = tmp_path / f"{name.replace('-', '_')}-{number}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n")

    monkeypatch.setattr(metadata, "version", version)
    return install


def engine(name: str) -> availability.Engine:
    return next(engine for engine in availability.engines() if engine.name == name)


def test_versions_name_this_project_the_python_and_only_what_is_installed(nothing_installed: Install) -> None:
    nothing_installed("tensorrt", "10.3.0")
    found = availability.versions()
    assert found["jetson-vlm"] == __version__
    assert found["tensorrt"] == "10.3.0"
    assert "torch" not in found
    assert {"python", "system", "machine"} <= set(found)


@pytest.mark.parametrize("name", ["onnxruntime", "onnxruntime-gpu"])
def test_cpu_engine_runs_with_either_build_of_onnxruntime(nothing_installed: Install, name: str) -> None:
    assert engine("onnx").why_not == ("onnxruntime is not installed",)
    nothing_installed(name, "1.31.1")
    assert engine("onnx").can_run


def test_gpu_engines_name_the_missing_driver_first(nothing_installed: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(availability, "cuda_driver", lambda: "the CUDA driver library cannot be loaded (gone)")
    for name in ("onnx-cuda", "cuda", "tensorrt"):
        assert engine(name).why_not[0] == "the CUDA driver library cannot be loaded (gone)"


def test_with_driver_and_library_only_what_is_missing_is_named(
    nothing_installed: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(availability, "cuda_driver", lambda: None)
    assert engine("onnx-cuda").why_not == ("onnxruntime-gpu is not installed",)
    nothing_installed("onnxruntime-gpu", "1.31.1")
    assert engine("onnx-cuda").can_run
    nothing_installed("cuda-bindings", "12.9.1")
    assert not any("cuda-bindings" in reason for reason in engine("cuda").why_not)


def test_missing_driver_library_is_told_with_the_linkers_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(availability.ctypes, "CDLL", refuse)
    why = availability.cuda_driver()
    assert why == "the CUDA driver library cannot be loaded (libcuda.so.1: cannot open shared object file)"
