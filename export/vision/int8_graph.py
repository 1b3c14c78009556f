"""Writes a tower's graph with int8 linear layers: QuantizeLinear and DequantizeLinear around them, zero points 0.

Weights are int8 by output channel, activations have one fixed scale each, smoothing is folded into norms and weights
(``models.vision_scales``). This is the explicit quantisation that TensorRT takes; ONNX Runtime computes the same.
One weight is in memory at a time beside the graph. numpy and onnx; no torch.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from export.decoder.external_data import DataFile, ExternalData
from export.vision.encoder_graph import (
    Constants,
    EncoderLayer,
    check_measured,
    encoder_layers,
    is_transposed,
    load_graph,
    weight_rows,
)
from export.vision.weights import INLINE_BYTES, data_file
from models.vision_scales import (
    F32,
    LINEARS,
    NORM_OF,
    SMOOTHED,
    ActivationScales,
    linear_name,
    quantize_rows,
    weight_scales,
)
from runtime.errors import ExportError

_ZERO = "int8_zero"


def write_int8_tower(source: Path, target: Path, scales: ActivationScales) -> None:
    """Writes ``source`` with the linear layers of its encoder in int8 to ``target``; both may have external data.

    The new graph has external data (``export.vision.weights.data_file``) when the source has. Raises ExportError when
    layers, shapes or weights are not those that were measured.
    """
    model = load_graph(source)
    external = any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in model.graph.initializer)
    data_file(target).unlink(missing_ok=True)
    with DataFile(data_file(target)) if external else nullcontext() as file:
        _Rewriter(model.graph, source.parent, scales, None if file is None else ExternalData(file)).run()
    target.write_bytes(model.SerializeToString(deterministic=True))
    onnx.checker.check_model(str(target), full_check=True)


class _Rewriter:
    """Replaces constants and products of one graph in place."""

    def __init__(self, graph: Any, folder: Path, scales: ActivationScales, data: ExternalData | None) -> None:
        self._graph, self._folder, self._scales, self._data = graph, folder, scales, data
        self._constants = Constants(graph, folder)
        self._added: list[Any] = []
        self._before: dict[str, list[Any]] = {}  # new nodes, by the output of the node that they go in front of

    def run(self) -> None:
        layers = encoder_layers(self._graph, self._constants)
        if len(layers) != self._scales.layers:
            raise ExportError(
                f"the vision scales are of {self._scales.layers} encoder layers, the graph has {len(layers)}",
                hint="measure them on this checkpoint: python -m export.quantize <checkpoint> --vision",
            )
        self._add(_ZERO, np.zeros((), np.int8))
        for index, layer in enumerate(layers):
            self._rewrite(index, layer)
        nodes = [new for node in self._graph.node for new in (*self._before.get(node.output[0], ()), node)]
        self._finish(nodes)

    def _rewrite(self, index: int, layer: EncoderLayer) -> None:
        smoothing = {norm: self._smooth_norm(index, layer, norm) for norm in SMOOTHED}
        inputs: dict[str, str] = {}
        for linear in LINEARS:
            product, factor = layer.products[linear], smoothing.get(NORM_OF.get(linear, ""))
            name, source = linear_name(index, linear), product.input[0]
            if source not in inputs:  # q, k and v share theirs
                inputs[source] = self._quantize_input(product, name, self._scales.input_scale(index, linear, factor))
            product.input[0] = inputs[source]
            product.input[1] = self._quantize_weight(product, index, linear, factor)

    def _smooth_norm(self, index: int, layer: EncoderLayer, norm: str) -> F32:
        """Divides a norm's constants by the smoothing scales, which are returned."""
        largest: list[F32] = []
        for linear in SMOOTHED[norm]:
            largest.append(np.abs(self._weight(layer.products[linear], index, linear)).max(axis=0))
        factor = self._scales.smoothing(index, norm, np.maximum.reduce(largest))
        node = layer.norms[norm]
        for place, part in ((1, "weight"), (2, "bias")):
            if len(node.input) > place and node.input[place]:
                name = f"layers.{index}.{norm}.{part}_smoothed"
                node.input[place] = self._add(name, self._constants.read(node.input[place]) / factor)
        return factor

    def _weight(self, product: Any, index: int, linear: str) -> F32:
        rows = weight_rows(product, self._constants)
        check_measured(rows, index, linear, self._scales)
        return rows

    def _quantize_input(self, product: Any, name: str, scale: np.float32) -> str:
        scale_name = self._add(f"{name}.input_scale", np.asarray(scale, np.float32))
        into = [product.input[0], scale_name, _ZERO]
        quantized, back = f"{name}.input_int8", f"{name}.input_back"
        self._before.setdefault(product.output[0], []).extend(
            (
                helper.make_node("QuantizeLinear", into, [quantized], name=f"{name}.quantize"),
                helper.make_node("DequantizeLinear", [quantized, scale_name, _ZERO], [back], name=f"{name}.dequantize"),
            )
        )
        return back

    def _quantize_weight(self, product: Any, index: int, linear: str, factor: F32 | None) -> str:
        name, rows = linear_name(index, linear), self._weight(product, index, linear)
        if factor is not None:
            rows *= factor
        scales = weight_scales(rows)
        integers, transposed = quantize_rows(rows, scales), is_transposed(product)
        taken = [
            self._add(f"{name}.weight_int8", integers if transposed else integers.T),
            self._add(f"{name}.weight_scale", scales),
            self._add(f"{name}.weight_zero", np.zeros(len(scales), np.int8)),
        ]
        back, axis = f"{name}.weight_back", 0 if transposed else 1
        node = helper.make_node("DequantizeLinear", taken, [back], name=f"{name}.weight_dequantize", axis=axis)
        self._before.setdefault(product.output[0], []).append(node)
        return back

    def _add(self, name: str, values: npt.NDArray[Any]) -> str:
        """A new constant; large ones go to the external data, if there is any."""
        if self._data is not None and values.nbytes >= INLINE_BYTES:
            self._data.add(name, values)
            self._added.append(self._data.initializers[-1])
        else:
            self._added.append(numpy_helper.from_array(np.ascontiguousarray(values).reshape(values.shape), name))
        return name

    def _finish(self, nodes: list[Any]) -> None:
        """Puts the new nodes in place and leaves out constants that nothing takes any more."""
        wanted = {value.name for value in self._graph.output}
        kept = []
        for node in reversed(nodes):
            if not wanted.isdisjoint(node.output):
                kept.append(type(node).FromString(node.SerializeToString()))
                wanted.update(node.input)
        for tensor in self._graph.initializer:
            if tensor.name in wanted:
                self._keep(tensor)
        copies = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in self._added]
        self._graph.ClearField("node")
        self._graph.node.extend(reversed(kept))
        self._graph.ClearField("initializer")
        self._graph.initializer.extend(sorted(copies, key=lambda tensor: str(tensor.name)))

    def _keep(self, tensor: Any) -> None:
        """A constant that stays as it is; external data goes to the new file."""
        copy = onnx.TensorProto()
        copy.CopyFrom(tensor)
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            self._add(tensor.name, numpy_helper.to_array(copy, str(self._folder)))
        else:
            self._added.append(copy)
