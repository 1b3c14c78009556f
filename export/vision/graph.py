"""Makes a traced graph small, plain and the same every time. numpy and onnx; no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from runtime.errors import ExportError


def clean(model: Any, dims: Mapping[str, Sequence[str | int]]) -> Any:
    """Removes what depends on the machine or the run, and names the free dimensions of inputs and outputs.

    Gone: stack traces, source paths and module names that the tracer noted, intermediate shapes, its version. ``dims``
    maps an input or output to the names (or sizes) of its dimensions.
    """
    model.ClearField("doc_string")
    model.ClearField("metadata_props")
    model.producer_name, model.producer_version = "jetson-vlm", ""
    graph = model.graph
    graph.ClearField("doc_string")
    graph.ClearField("metadata_props")
    graph.ClearField("value_info")
    graph.name = "graph"
    for item in (*graph.node, *graph.input, *graph.output, *graph.initializer):
        item.ClearField("doc_string")
        item.ClearField("metadata_props")
    for value in (*graph.input, *graph.output):
        value.CopyFrom(helper.make_tensor_value_info(value.name, TensorProto.FLOAT, list(dims[value.name])))
    _drop_unused(graph)
    return model


def save(model: Any, path: Path) -> None:
    """Writes a graph and checks it with onnx.checker. Raises ExportError for an invalid one.

    Weights that lie in a file beside it (`export.vision.weights.store_weights`) must be there already.
    """
    path.write_bytes(model.SerializeToString(deterministic=True))
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as problem:
        raise ExportError(f"{path.name}: the traced graph is not valid ONNX: {problem}") from problem


def operators(model: Any) -> dict[str, int]:
    """How often each operator occurs, for tests and reports."""
    counts: dict[str, int] = {}
    for node in model.graph.node:
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return counts


def _drop_unused(graph: Any) -> None:
    used = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    graph.ClearField("initializer")
    graph.initializer.extend(sorted(kept, key=lambda tensor: tensor.name))


def max_error(found: Iterable[Any], expected: Iterable[Any]) -> float:
    """Largest absolute difference over pairs of arrays; ExportError for NaN, infinity or shapes that differ."""
    worst = 0.0
    for got, want in zip(found, expected, strict=True):
        if got.shape != want.shape or not np.isfinite(got).all():
            raise ExportError(f"the traced graph gives {got.shape} or values that are not finite, torch {want.shape}")
        worst = max(worst, float(np.abs(got.astype(np.float64) - want.astype(np.float64)).max(initial=0.0)))
    return worst
