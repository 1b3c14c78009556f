"""Vision graphs that compute in fewer bits, made from the traced f32 graphs. onnx and onnxruntime; no torch."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from export.vision.names import PROJECTOR_FILE, TOWER_FILE
from runtime.bundle.manifest import VisionPrecision
from runtime.errors import ExportError

# Largest difference from the f32 graph, relative to its largest value.
LIMITS: Mapping[VisionPrecision, float] = {"fp16": 2e-2, "int8": 2e-1}
_TILES = 3
_HINT = "use --vision-precision fp32"


def convert(source: Path, target: Path, precision: VisionPrecision, tile_px: int) -> float:
    """Writes both graphs of ``source`` in ``precision`` into ``target``; returns the tower's relative error.

    "fp16": every operator in f16, inputs and outputs f32. "int8": the tower's matrix products with int8 weights (per
    channel) and dynamically quantised activations, the rest and the projector in f32. Raises ExportError when the
    result leaves ``LIMITS``, or onnxruntime is not installed.
    """
    try:
        runtime = importlib.import_module("onnxruntime")
    except ImportError as problem:
        raise ExportError(
            f"--vision-precision {precision} needs onnxruntime", hint="pip install onnxruntime"
        ) from problem
    if precision == "fp16":
        for name in (TOWER_FILE, PROJECTOR_FILE):
            _to_half(source / name, target / name)
    else:
        _to_int8(source / TOWER_FILE, target / TOWER_FILE)
        (target / PROJECTOR_FILE).write_bytes((source / PROJECTOR_FILE).read_bytes())
    tiles = np.random.default_rng(0).standard_normal((_TILES, 3, tile_px, tile_px), dtype=np.float32)
    want, found = (_run(runtime, folder / TOWER_FILE, tiles) for folder in (source, target))
    error = float(np.abs(found - want).max() / np.abs(want).max())
    if not error <= LIMITS[precision]:
        message = f"the {precision} vision tower differs by {error:.3g} of its largest value, the limit is"
        raise ExportError(f"{message} {LIMITS[precision]:.3g}", hint=_HINT)
    return error


def _run(runtime: Any, path: Path, tiles: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    features: np.ndarray[Any, Any] = session.run(None, {session.get_inputs()[0].name: tiles})[0]
    return features


def _to_int8(source: Path, target: Path) -> None:
    quantization = importlib.import_module("onnxruntime.quantization")
    root, level = logging.getLogger(), logging.getLogger().level
    root.setLevel(logging.ERROR)  # it advises to preprocess the model, on the root logger
    try:
        quantization.quantize_dynamic(
            _folded(source),
            str(target),
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            weight_type=quantization.QuantType.QInt8,
        )
    finally:
        root.setLevel(level)


def _folded(path: Path) -> Any:
    """The graph with its stored weights widened, because the quantiser looks for f32 initialisers."""
    onnx = importlib.import_module("onnx")
    model = onnx.load(str(path))
    graph = model.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    nodes = []
    for node in graph.node:
        if node.op_type == "Cast" and node.input[0] in stored and node.attribute[0].i == onnx.TensorProto.FLOAT:
            tensor = stored.pop(node.input[0])
            values = onnx.numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, node.output[0]))
        else:
            nodes.append(node)
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    graph.ClearField("node")
    graph.node.extend(kept)
    return model


def _sort(model: Any) -> None:
    """Puts every node behind the nodes whose outputs it takes; the order is kept where it may be."""
    graph = model.graph
    ready = {value.name for value in (*graph.input, *graph.initializer)} | {""}
    waiting = [type(node).FromString(node.SerializeToString()) for node in graph.node]
    graph.ClearField("node")
    while waiting:
        placed = [node for node in waiting if ready.issuperset(node.input)]
        if not placed:
            raise ExportError("the fp16 graph has nodes whose inputs nothing computes", hint=_HINT)
        graph.node.extend(placed)
        ready |= {name for node in placed for name in node.output}
        waiting = [node for node in waiting if not ready.issuperset(node.output)]


def _to_half(source: Path, target: Path) -> None:
    float16 = importlib.import_module("onnxruntime.transformers.float16")
    onnx = importlib.import_module("onnx")
    model = float16.convert_float_to_float16(_folded(source), keep_io_types=True, disable_shape_infer=False)
    model.graph.ClearField("value_info")
    _sort(model)
    target.write_bytes(model.SerializeToString(deterministic=True))
    onnx.checker.check_model(str(target), full_check=True)
