"""Which libraries are installed, and which engines can run with them on this machine.

Libraries are looked up, not imported: an answer also comes when one of them is broken.
"""

from __future__ import annotations

import ctypes
import platform
from dataclasses import dataclass
from importlib import metadata, util

from runtime.version import __version__

ONNXRUNTIME = ("onnxruntime", "onnxruntime-gpu")
OPENCV = ("opencv-python-headless", "opencv-python", "opencv-contrib-python", "opencv-contrib-python-headless")
LIBRARIES = (
    ("numpy", "tokenizers", "safetensors", "pillow")
    + ONNXRUNTIME
    + OPENCV
    + ("cuda-bindings", "pycuda", "tensorrt", "torch", "transformers", "onnx")
)


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine and the reasons why it cannot run here: none means that it can."""

    name: str
    runs: str
    why_not: tuple[str, ...]
    fix: str | None = None

    @property
    def can_run(self) -> bool:
        return not self.why_not


def installed(name: str) -> str | None:
    """Return the version of an installed distribution, without importing it."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def versions() -> dict[str, str]:
    """Name the versions of this project, Python, system and every library that plays a part."""
    system = {
        "jetson-vlm": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
    }
    return system | {name: version for name in LIBRARIES if (version := installed(name)) is not None}


def cuda_driver() -> str | None:
    """Return why the CUDA driver cannot be loaded; None when it can."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        return f"the CUDA driver library cannot be loaded ({error})"
    return None


def _part(module: str, what: str) -> list[str]:
    """Say so when this version of the project has no ``module``."""
    parent = module.rpartition(".")[0]
    there = util.find_spec(parent) is not None and util.find_spec(module) is not None
    return [] if there else [f"jetson-vlm {__version__} has no {what} yet"]


def engines() -> tuple[Engine, ...]:
    """Say of each engine whether it can run here."""
    onnx = [] if any(installed(name) for name in ONNXRUNTIME) else ["onnxruntime is not installed"]
    driver = [why] if (why := cuda_driver()) is not None else []
    bindings = (
        [] if installed("cuda-bindings") or installed("pycuda") else ["neither cuda-bindings nor pycuda is installed"]
    )
    gpu_build = [] if installed("onnxruntime-gpu") else ["onnxruntime-gpu is not installed"]
    tensorrt = [] if installed("tensorrt") else ["the Python package tensorrt is not installed"]
    cuda_fix = "install NVIDIA's driver, then: pip install 'jetson-vlm[cuda12]' (driver for CUDA 13: [cuda13])"
    return (
        Engine("onnx", "vision and decoder on the CPU (ONNX Runtime)", tuple(onnx), "pip install 'jetson-vlm[cpu]'"),
        Engine(
            "onnx-cuda",
            "vision on an NVIDIA GPU (ONNX Runtime, x86-64)",
            (*driver, *gpu_build),
            "pip uninstall onnxruntime; pip install 'jetson-vlm[ort-gpu]'",
        ),
        Engine(
            "cuda",
            "decoder on an NVIDIA GPU",
            (*driver, *bindings, *_part("runtime.decoder.cuda", "CUDA decoder")),
            cuda_fix,
        ),
        Engine(
            "tensorrt",
            "vision on a Jetson (TensorRT)",
            (*driver, *tensorrt, *_part("runtime.vision.tensorrt", "TensorRT engine")),
            "apt-get install python3-libnvinfer (JetPack), in a venv with --system-site-packages",
        ),
    )
