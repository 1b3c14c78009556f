"""Vision engines behind one protocol: pictures as tiles in, rows for the decoder out.

vision = open_vision(bundle)
image_embeds = vision.encode(preprocess(rgb, layout, bundle.manifest.vision), layout)
"""

from __future__ import annotations

from typing import Literal

from runtime.bundle import Bundle
from runtime.decoder import cores_are_ours, default_threads
from runtime.errors import InputError
from runtime.vision.onnx_session import VisionSettings
from runtime.vision.onnx_vision import OnnxVision
from runtime.vision.protocol import VisionEngine

__all__ = ["OnnxVision", "VisionEngine", "VisionSettings", "open_vision"]

Provider = Literal["auto", "cpu", "cuda"]
MAX_THREADS = 256


def open_vision(
    bundle: Bundle, *, threads: int | None = None, provider: Provider = "auto", spin: bool | None = None
) -> VisionEngine:
    """Open the tower and the projector of a bundle.

    threads: None for the physical cores that the process may use. provider: "cuda" needs onnxruntime-gpu, "auto" takes
    CUDA where ONNX Runtime offers it and the CPU otherwise. spin: whether waiting threads burn their core; None spins
    on isolated CPUs only. Raises EngineError when the engine cannot run here, BundleError for graphs that contradict
    the manifest, InputError for a wrong argument.
    """
    if provider not in ("auto", "cpu", "cuda"):
        raise InputError(f"provider {provider!r} is not known", hint="one of auto, cpu, cuda")
    if threads is not None and not 1 <= threads <= MAX_THREADS:
        raise InputError(f"{threads} threads, expected 1 to {MAX_THREADS}")
    settings = VisionSettings(
        threads=default_threads() if threads is None else threads,
        spin=cores_are_ours() if spin is None else spin,
        provider=provider,
    )
    return OnnxVision(bundle, settings)
