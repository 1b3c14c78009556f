"""Makes a traced graph small, plain and the same every time. numpy and onnx; no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from runtime.errors import ExportError

MAX_MODEL_BYTES = (1 << 31) - (1 << 20)  # protobuf's limit, with some room
_NARROW_FROM = 64  # elements; below that a Cast costs more than it saves
_STORED = "_stored"


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


def narrow_weights(model: Any) -> Any:
    """Stores f32 initialisers as f16 (else bf16) followed by a Cast wherever that loses nothing.

    Checkpoints are kept in 16 bits, so their weights fit exactly; the graph still computes in f32.
    """
    graph = model.graph
    casts = []
    for index, tensor in enumerate(graph.initializer):
        if tensor.data_type != TensorProto.FLOAT:
            continue
        values = numpy_helper.to_array(tensor)
        dtype = _exact_dtype(values) if values.size >= _NARROW_FROM else None
        if dtype is None:
            continue
        name = tensor.name
        graph.initializer[index].CopyFrom(numpy_helper.from_array(values.astype(dtype), name + _STORED))
        casts.append(helper.make_node("Cast", [name + _STORED], [name], name=f"widen_{name}", to=TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    graph.ClearField("node")
    graph.node.extend(nodes)
    return model


def _exact_dtype(values: np.ndarray[Any, Any]) -> Any:
    for dtype in (np.float16, ml_dtypes.bfloat16):
        with np.errstate(over="ignore"):
            if np.array_equal(values.astype(dtype).astype(np.float32), values):
                return dtype
    return None


def save(model: Any, path: Path) -> None:
    """Checks a graph with onnx.checker and writes it. Raises ExportError for an invalid one, or one beyond 2 GiB."""
    size = model.ByteSize()
    if size > MAX_MODEL_BYTES:
        raise ExportError(
            f"{path.name}: {size} bytes, one ONNX file holds at most {MAX_MODEL_BYTES}",
            hint="store the checkpoint in 16 bits",
        )
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as problem:
        raise ExportError(f"{path.name}: the traced graph is not valid ONNX: {problem}") from problem
    path.write_bytes(model.SerializeToString(deterministic=True))


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
