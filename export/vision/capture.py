"""From a torch module without weights in memory to an ONNX graph and a table of its weights. Imports torch."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from export.vision.names import OPSET
from export.vision.weights import HeldWeight, StoredWeight, Weight
from runtime.errors import ExportError

_HELD_FROM = 64  # values; smaller constants are the graph's own


@dataclass(frozen=True, slots=True)
class Captured:
    """An ONNX model that lacks its weights, the weights by initialiser name, and the width of its one output."""

    model: Any
    weights: Mapping[str, Weight]
    width: int


def capture(
    module: nn.Module,
    stored: Mapping[str, StoredWeight],
    example: tuple[Tensor, ...],
    names: Sequence[str],
    output: str,
    free: dict[str, Any],
) -> Captured:
    """Exports ``module`` with ``torch.onnx.export`` and folds what is constant, without the values of its weights.

    ``stored`` says where the weights lie, by parameter name. ``example`` is read for its shapes alone, ``free`` are
    its dynamic dimensions. Raises ExportError for a module that cannot be traced.
    """
    with _quiet():
        try:
            program: Any = torch.onnx.export(
                module,
                example,
                dynamo=True,
                opset_version=OPSET,
                input_names=list(names),
                output_names=[output],
                dynamic_shapes=free,
                verbose=False,
                external_data=False,
                optimize=False,
            )
            _hand_in(program.model.graph, stored)
            program.optimize()
        except torch.onnx.OnnxExporterError as problem:
            reason = str(problem).strip().splitlines()[-1:] or [type(problem).__name__]
            raise ExportError(f"torch cannot trace {output}: {reason[0]}") from problem
    width = int(program.model.graph.outputs[0].shape[-1])
    weights = _take_out(program.model.graph)
    return Captured(ir.serde.serialize_model(program.model), weights, width)


class _LazyWeight(ir.LazyTensor):
    """What the optimiser sees of a weight: it reads a small one when it wants to fold it."""

    def __init__(self, weight: StoredWeight, shape: Any) -> None:
        super().__init__(lambda: ir.tensor(weight.values()), ir.DataType.FLOAT, shape)
        self.weight = weight


def _hand_in(graph: Any, stored: Mapping[str, StoredWeight]) -> None:
    """Puts a lazy tensor in the place of each fake one; a transposition of a weight is left to its reading."""
    for name, value in list(graph.initializers.items()):
        if name in stored:
            value.const_value = _LazyWeight(stored[name], value.shape)
    for node in list(graph):
        source = node.inputs[0] if node.op_type == "Transpose" else None
        weight = getattr(source.const_value, "weight", None) if source is not None else None
        if source is None or weight is None or len(source.shape) != 2 or len(source.uses()) != 1:
            continue
        shape = ir.Shape(list(reversed(source.shape.dims)))
        turned = ir.Value(name=f"{source.name}.T", shape=shape, type=source.type)
        turned.const_value = _LazyWeight(replace(weight, transposed=not weight.transposed), shape)
        graph.register_initializer(turned)
        ir.convenience.replace_all_uses_with(node.outputs[0], turned)
        graph.remove(node, safe=True)
        del graph.initializers[source.name]


def _take_out(graph: Any) -> dict[str, Weight]:
    """Removes the weights from the graph's initialisers and returns them by name."""
    weights: dict[str, Weight] = {}
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if isinstance(tensor, _LazyWeight):
            weights[name] = tensor.weight
        elif tensor.dtype == ir.DataType.FLOAT and tensor.size >= _HELD_FROM:
            weights[name] = HeldWeight(np.array(tensor.numpy()))
        else:
            continue
        del graph.initializers[name]
    return weights


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's advice to its developers is not for those who build a bundle."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)
