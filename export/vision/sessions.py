"""Opens finished vision graphs to check them, in as little memory as they need. onnxruntime; no torch."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from export.vision.weights import data_file


def open_graph(path: Path) -> Any:
    """An ONNX Runtime session on the CPU for the graph at ``path``.

    Weights that lie in a file beside it stay mapped and are widened as they are needed, as at run time, not all at the
    start; what one operator computed is given back as soon as the next has used it. Raises ImportError.
    """
    runtime = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    left_out = None
    if data_file(path).exists():
        options.enable_mem_pattern = False
        options.enable_cpu_mem_arena = False
        left_out = ["ConstantFolding"]
    providers = ["CPUExecutionProvider"]
    return runtime.InferenceSession(str(path), options, providers=providers, disabled_optimizers=left_out)
