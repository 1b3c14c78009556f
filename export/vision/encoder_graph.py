"""Finds a tower's encoder layers in its traced graph: which product belongs to which linear layer. onnx; no torch.

Tracing names products and weights by numbers, so they are found by structure (what a norm feeds, in which order) and
proven by value: every weight's column maxima must be those that were measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, numpy_helper

from models.vision_scales import LINEARS, NORM_OF, QKV, SMOOTHED, ActivationScales, linear_name
from runtime.errors import ExportError

F32 = npt.NDArray[np.float32]
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
_HINT = "measure the scales on this checkpoint: python -m export.quantize <checkpoint> --vision --calibration <images>"


class Constants:
    """The constants of a graph by the name under which a node takes them, read one at a time as f32.

    ``folder`` holds the graph's external data. A constant is an initialiser, or one that a Cast widens.
    """

    def __init__(self, graph: Any, folder: Path) -> None:
        stored = {tensor.name: tensor for tensor in graph.initializer}
        self._folder = folder
        self._of = dict(stored)
        for node in graph.node:
            if node.op_type == "Cast" and node.input[0] in stored:
                self._of[node.output[0]] = stored[node.input[0]]

    def is_matrix(self, name: str) -> bool:
        """Whether it is a constant of floats with two dimensions."""
        tensor = self._of.get(name)
        return tensor is not None and len(tensor.dims) == 2 and tensor.data_type in _FLOATS

    def read(self, name: str) -> F32:
        """A constant as a new f32 array; external data is read for it alone. KeyError when it is none."""
        copy = TensorProto()
        copy.CopyFrom(self._of[name])  # reading external data puts it into the message
        values: F32 = numpy_helper.to_array(copy, str(self._folder)).astype(np.float32)
        return values


@dataclass(frozen=True)
class EncoderLayer:
    """The nodes of one encoder layer: products by linear layer, norms by name."""

    products: Mapping[str, Any]
    norms: Mapping[str, Any]


def encoder_layers(graph: Any, constants: Constants) -> list[EncoderLayer]:
    """The encoder layers of a tower's graph, first to last.

    Each is three products of one norm's output (q, k, v), one of the attention's, one of the other norm's output and
    one more, in this order. Raises ExportError where a graph is built in another way.
    """
    norms = {node.output[0]: node for node in graph.node if node.op_type == "LayerNormalization"}
    products = [node for node in graph.node if _is_product(node, constants)]
    whole = len(products) - len(LINEARS) + 1
    begins = [at for at in range(whole) if _is_layer(products[at : at + len(LINEARS)], norms)]
    # S² averages its maps with further products behind the last layer.
    if not begins or begins != list(range(0, len(LINEARS) * len(begins), len(LINEARS))):
        raise _unexpected(
            f"its {len(products)} products with weights are not {len(LINEARS)} for each encoder layer, in order"
        )
    layers = []
    for at in begins:
        named = dict(zip(LINEARS, products[at : at + len(LINEARS)], strict=True))
        chosen = {norm: norms[named[linears[0]].input[0]] for norm, linears in SMOOTHED.items()}
        layers.append(EncoderLayer(named, chosen))
    _check_alone(graph, layers)
    return layers


def _is_layer(products: list[Any], norms: Mapping[str, Any]) -> bool:
    """Whether six products take q, k and v's norm three times, and fc1's once, where a layer does."""
    sources = dict(zip(LINEARS, (node.input[0] for node in products), strict=True))
    fed = {linear for linear, source in sources.items() if source in norms}
    return fed == set(NORM_OF) and len({sources[linear] for linear in QKV}) == 1


def weight_rows(product: Any, constants: Constants) -> F32:
    """A product's weight as [N, K], f32, however the node takes it."""
    weight = constants.read(product.input[1])
    return weight if is_transposed(product) else np.ascontiguousarray(weight.T)


def is_transposed(product: Any) -> bool:
    """Whether the node takes its weight as [N, K]: a Gemm with ``transB``."""
    return any(attribute.name == "transB" and attribute.i == 1 for attribute in product.attribute)


def check_measured(rows: F32, layer: int, linear: str, scales: ActivationScales) -> None:
    """The scales were measured on this weight [N, K]. Raises ExportError when shape or column maxima differ."""
    name = linear_name(layer, linear)
    if scales.maxima[name].size != rows.shape[1]:
        raise ExportError(
            f"the vision scales hold {scales.maxima[name].size} channels for {name}, the graph's weight takes "
            f"{rows.shape[1]}",
            hint=_HINT,
        )
    expected = scales.weight_maxima.get(name)
    if expected is not None and not np.array_equal(np.abs(rows).max(axis=0), expected):
        raise ExportError(f"the vision scales were measured on other weights: {name} differs", hint=_HINT)


def _is_product(node: Any, constants: Constants) -> bool:
    return node.op_type in ("MatMul", "Gemm") and constants.is_matrix(node.input[1])


def _check_alone(graph: Any, layers: list[EncoderLayer]) -> None:
    """A smoothed norm may feed nothing but the products whose columns undo the smoothing."""
    ours = {node.output[0] for layer in layers for node in layer.products.values()}
    smoothed = {node.output[0] for layer in layers for node in layer.norms.values()}
    outputs = {value.name for value in graph.output}
    for node in graph.node:
        if node.output[0] not in ours and not smoothed.isdisjoint(node.input):
            raise _unexpected(f"{node.op_type} {node.name!r} takes a norm's output beside the linear layers")
    if smoothed & outputs:
        raise _unexpected("a norm's output is an output of the graph")


def _unexpected(reason: str) -> ExportError:
    return ExportError(
        f"the vision tower's graph cannot be quantised: {reason}", hint="use --vision-precision fp16 or fp32"
    )


def load_graph(path: Path) -> Any:
    """A model without its external data, which ``Constants`` reads piece by piece."""
    return onnx.load(str(path), load_external_data=False)
