"""Opens and runs ONNX Runtime sessions for the vision graphs: options, limits of memory, errors in our words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.decoder.ort_session import INSTALL_HINT, onnx_runtime, ort_errors
from runtime.errors import BundleError, EngineError
from runtime.vision.external_data import external_files

F32 = npt.NDArray[np.float32]

_CUDA = "CUDAExecutionProvider"
_CPU = "CPUExecutionProvider"
_REBUILD = "build the bundle again: python -m export.build_engines <checkpoint> --out <bundle>"


@dataclass(frozen=True, slots=True)
class VisionSettings:
    """threads: of one operator. spin: whether idle threads burn their core. provider: "auto", "cpu" or "cuda"."""

    threads: int
    spin: bool = False
    provider: str = "auto"


class Graph:
    """One ONNX graph with checked inputs and one f32 output."""

    def __init__(self, path: Path, settings: VisionSettings) -> None:
        ort = _library()
        self.path = path
        self._errors = ort_errors()
        options = ort.SessionOptions()
        options.intra_op_num_threads = settings.threads
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        # The number of tiles changes from picture to picture; a planned pattern per shape would be kept for each.
        options.enable_mem_pattern = False
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if settings.spin else "0")
        providers = _providers(ort, settings.provider)
        # Weights in a file of their own stay mapped in 16 bits on the CPU, and each is widened when its turn comes, at
        # no measurable cost. Folding would hold all of them in f32: 1.6 GB for SigLIP-so400m instead of 0.8, and 10 s.
        left_out = ["ConstantFolding"] if providers == [_CPU] and external_files(path) else None
        try:
            self._session = ort.InferenceSession(str(path), options, providers=providers, disabled_optimizers=left_out)
        except self._errors as problem:
            raise BundleError(
                f"{path}: ONNX Runtime {ort.__version__} refuses it: {problem}", hint=_REBUILD
            ) from problem
        self.provider = str(self._session.get_providers()[0])
        if settings.provider == "cuda" and self.provider != _CUDA:
            raise EngineError(
                f"ONNX Runtime {ort.__version__} cannot start CUDA here", hint="vlm-doctor says what is missing"
            )
        self._options = ort.RunOptions()
        if self.provider == _CPU:
            # Gives back after each run what the arena took for the largest picture so far.
            self._options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")

    def shapes(self) -> tuple[dict[str, Sequence[Any]], dict[str, Sequence[Any]]]:
        """Shapes of inputs and outputs by name; a size that may vary is a string or None."""
        inputs = {value.name: value.shape for value in self._session.get_inputs()}
        return inputs, {value.name: value.shape for value in self._session.get_outputs()}

    def run(self, output: str, feeds: Mapping[str, F32]) -> F32:
        """One output for some inputs. Raises EngineError with what ONNX Runtime says."""
        try:
            (result,) = self._session.run([output], dict(feeds), self._options)
        except self._errors as problem:
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items())
            raise EngineError(f"{self.path.name} failed on {shapes}: {problem}") from problem
        return np.asarray(result, np.float32)


def check_shape(graph: Graph, kind: str, name: str, expected: Sequence[int | None]) -> None:
    """Compare one input or output of a graph with what the manifest says; None stands for any size."""
    shapes = graph.shapes()[0 if kind == "input" else 1]
    if name not in shapes:
        raise BundleError(f"{graph.path}: has no {kind} {name!r}, only {', '.join(sorted(shapes))}", hint=_REBUILD)
    found = shapes[name]
    fits = len(found) == len(expected) and all(
        want is None or not isinstance(have, int) or have == want for have, want in zip(found, expected, strict=True)
    )
    if not fits:
        wanted = "[" + ", ".join("any" if size is None else str(size) for size in expected) + "]"
        raise BundleError(f"{graph.path}: {kind} {name!r} is {list(found)}, the manifest says {wanted}", hint=_REBUILD)


def _library() -> Any:
    try:
        return onnx_runtime()
    except ImportError as problem:
        raise EngineError(f"the vision engine 'onnx' needs onnxruntime: {problem}", hint=INSTALL_HINT) from problem


def _providers(ort: Any, wanted: str) -> list[Any]:
    available = ort.get_available_providers()
    if wanted == "cuda" and _CUDA not in available:
        raise EngineError(
            f"this ONNX Runtime offers {', '.join(available)}, not CUDA", hint="pip install 'jetson-vlm[ort-gpu]'"
        )
    if wanted == "cpu" or _CUDA not in available:
        return [_CPU]
    # TF32 keeps 10 bits of the mantissa; features would differ from the CPU's in the third digit.
    return [(_CUDA, {"use_tf32": "0"}), _CPU]
