"""Writes a vision graph that computes in f16, one weight at a time. onnx and onnxruntime's converter; no torch."""

from __future__ import annotations

import importlib
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.decoder.external_data import DataFile, ExternalData
from export.vision.encoder_graph import Constants, load_graph
from export.vision.weights import INLINE_BYTES, data_file
from runtime.errors import ExportError

_HINT = "use --vision-precision fp32"
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
_WEIGHT_FROM = 64  # values; smaller constants (scales of a Resize) are left to the converter
_LARGEST = float(np.finfo(np.float16).max)


def write_half_graph(source: Path, target: Path) -> None:
    """Writes ``source`` with every operator in f16 to ``target``; inputs and outputs stay f32.

    The converter sees each weight as an input of the graph, so it never holds any; they are rounded (and clamped to
    f16's range) as they are written, to a file beside ``target`` when ``source`` has one. Raises ExportError.
    """
    model = load_graph(source)
    constants = Constants(model.graph, source.parent)
    apart = any(tensor.data_location == TensorProto.EXTERNAL for tensor in model.graph.initializer)
    outside = [value.name for value in (*model.graph.input, *model.graph.output)]
    weights = _to_inputs(model.graph)
    float16 = importlib.import_module("onnxruntime.transformers.float16")
    model = float16.convert_float_to_float16(model, keep_io_types=outside)
    graph = model.graph
    graph.ClearField("value_info")
    inputs = [value for value in graph.input if value.name in outside]
    _replace(graph.input, inputs)
    _sort(graph, weights)
    data_file(target).unlink(missing_ok=True)
    with ExitStack() as stack:
        external = ExternalData(stack.enter_context(DataFile(data_file(target)))) if apart else None
        for name in weights:
            values = constants.read(name).clip(-_LARGEST, _LARGEST).astype(np.float16)
            if external is not None and values.nbytes >= INLINE_BYTES:
                external.add(name, values)
            else:
                graph.initializer.append(numpy_helper.from_array(values, name))
        if external is not None:
            graph.initializer.extend(external.initializers)
    target.write_bytes(model.SerializeToString(deterministic=True))
    onnx.checker.check_model(str(target), full_check=True)


def _to_inputs(graph: Any) -> list[str]:
    """Makes each weight an f32 input of the graph, without the Cast that widened it; returns their names, sorted."""
    stored = {tensor.name: tensor for tensor in graph.initializer if _is_weight(tensor)}
    found, nodes = {}, []
    for node in graph.node:
        if node.op_type == "Cast" and node.input[0] in stored and node.attribute[0].i == TensorProto.FLOAT:
            found[node.output[0]] = stored.pop(node.input[0])
        else:
            nodes.append(node)
    found |= {name: tensor for name, tensor in stored.items() if tensor.data_type == TensorProto.FLOAT}
    taken = {tensor.name for tensor in found.values()}
    _replace(graph.node, nodes)
    _replace(graph.initializer, [tensor for tensor in graph.initializer if tensor.name not in taken])
    for name in sorted(found):
        graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, list(found[name].dims)))
    return sorted(found)


def _is_weight(tensor: Any) -> bool:
    return tensor.data_type in _FLOATS and int(np.prod(tensor.dims)) >= _WEIGHT_FROM


def _sort(graph: Any, weights: list[str]) -> None:
    """Puts every node behind the nodes whose outputs it takes; the order is kept where it may be."""
    ready = {value.name for value in (*graph.input, *graph.initializer)} | {"", *weights}
    waiting, placed = list(graph.node), []
    while waiting:
        now = [node for node in waiting if ready.issuperset(node.input)]
        if not now:
            raise ExportError("the fp16 graph has nodes whose inputs nothing computes", hint=_HINT)
        placed += now
        ready |= {name for node in now for name in node.output}
        waiting = [node for node in waiting if not ready.issuperset(node.output)]
    _replace(graph.node, placed)


def _replace(field: Any, items: list[Any]) -> None:
    """Gives a repeated field other items, some of which may be its own."""
    copies = [type(item).FromString(item.SerializeToString()) for item in items]
    del field[:]
    field.extend(copies)
