"""Opens ONNX Runtime sessions for the decoder: options, and its exceptions in our words."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.errors import BundleError, EngineError

INSTALL_HINT = "pip install 'jetson-vlm[cpu]'"


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """threads: of one operator. spin: whether idle threads burn their core while they wait for the next operator."""

    threads: int
    spin: bool


def onnx_runtime() -> Any:
    """The module onnxruntime, without its telemetry. Raises ImportError.

    Its packages report to their maker and write to the home folder as soon as they are imported (1.31: the switch
    `disable_telemetry_events` comes too late); the environment alone keeps them from it. Whoever wants that sets
    ORT_DISABLE_TELEMETRY=0.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    return onnxruntime


def open_session(model: Path, settings: SessionSettings) -> tuple[Any, Any]:
    """(the onnxruntime module, an InferenceSession on the CPU) for a graph with its external data beside it.

    Weights stay mapped until the engine has packed them, and packed ones stay out of the arena, so that the arena can
    be shrunk after a long prefill (:func:`shrinking_options`).
    Raises EngineError without the library, BundleError for a file that it refuses.
    """
    try:
        ort = onnx_runtime()
    except ImportError as problem:
        raise EngineError(f"the decoder 'onnx' needs onnxruntime: {problem}", hint=INSTALL_HINT) from problem
    options = ort.SessionOptions()
    options.intra_op_num_threads = settings.threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.enable_mem_pattern = False  # it would keep a plan of memory for every length of a prompt
    options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if settings.spin else "0")
    try:
        session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    except ort_errors() as problem:
        message = f"{model}: ONNX Runtime {ort.__version__} refuses it: {problem}"
        raise BundleError(message, hint="build it again") from problem
    return ort, session


def shrinking_options(ort: Any) -> Any:
    """Options of a run after which the engine gives its free activation memory back."""
    options = ort.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options


def ort_errors() -> tuple[type[Exception], ...]:
    """The exceptions that the library raises."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    names = (
        "EPFail",
        "EngineError",
        "Fail",
        "InvalidArgument",
        "InvalidGraph",
        "InvalidProtobuf",
        "ModelLoaded",
        "NoModel",
        "NoSuchFile",
        "NotImplemented",
        "RuntimeException",
    )
    return (*(getattr(state, name) for name in names), RuntimeError)
