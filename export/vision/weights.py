"""The weights of a vision graph on their way from a checkpoint into ONNX, one tensor at a time. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes
import numpy as np
import numpy.typing as npt
from onnx import TensorProto, helper, numpy_helper

from export.decoder.external_data import DataFile, ExternalData
from export.decoder.safetensors_file import F32, SafetensorsFile
from runtime.bundle.manifest import GRAPH_DATA_SUFFIX

EXTERNAL_FROM_BYTES = 32 << 20  # of all weights as f32; below that a graph is one file
INLINE_BYTES = 1 << 10  # smaller tensors stay in the graph in any case
_BLOCK_BYTES = 8 << 20  # of f32 values that are looked at together
_NARROW_FROM = 64  # elements; below that a Cast costs more than it saves
_STORED = "_stored"


class Weight(Protocol):
    """f32 values that need not be in memory."""

    @property
    def size(self) -> int:
        """How many values."""
        ...

    def blocks(self) -> Iterator[F32]:
        """All values in pieces, in any order and shape."""
        ...

    def values(self, dtype: Any = np.float32) -> npt.NDArray[Any]:
        """The whole tensor in ``dtype``, row-major."""
        ...


@dataclass(frozen=True, slots=True)
class StoredWeight:
    """One tensor of a checkpoint; ``transposed`` when the graph wants it the other way round (two dimensions)."""

    file: SafetensorsFile
    name: str
    transposed: bool = False

    @property
    def size(self) -> int:
        """How many values."""
        return math.prod(self.file.tensors[self.name].shape)

    def blocks(self) -> Iterator[F32]:
        """The stored rows, a few at a time."""
        return self.file.iter_rows(self.name, _BLOCK_BYTES)

    def values(self, dtype: Any = np.float32) -> npt.NDArray[Any]:
        """The whole tensor in ``dtype``, row-major."""
        stored = np.empty(self.file.tensors[self.name].shape, dtype)
        flat, at = stored.reshape(-1), 0
        for block in self.blocks():
            flat[at : at + block.size] = block.reshape(-1)
            at += block.size
        return np.ascontiguousarray(stored.T) if self.transposed else stored


@dataclass(frozen=True, slots=True)
class HeldWeight:
    """A constant that the tracer computed."""

    array: F32

    @property
    def size(self) -> int:
        """How many values."""
        return self.array.size

    def blocks(self) -> Iterator[F32]:
        """The whole array at once."""
        yield self.array

    def values(self, dtype: Any = np.float32) -> npt.NDArray[Any]:
        """The array in ``dtype``."""
        return self.array.astype(dtype)


def data_file(graph: Path) -> Path:
    """Where the weights of a graph lie that does not hold them itself."""
    return graph.with_name(graph.name + GRAPH_DATA_SUFFIX)


def store_weights(model: Any, weights: Mapping[str, Weight], path: Path) -> None:
    """Adds ``weights`` to the initialisers of ``model``, which will be saved at ``path``; unused ones are left out.

    Each is stored as f16 (else bf16) followed by a Cast wherever that loses nothing: checkpoints are kept in 16 bits,
    and the graph still computes in f32. When they take more than ``EXTERNAL_FROM_BYTES`` as f32, those of
    ``INLINE_BYTES`` and more go to ``data_file(path)``. Memory: the largest tensor twice, in the stored dtype.
    Raises OutputError when the disk does not take it.
    """
    graph, data = model.graph, data_file(path)
    data.unlink(missing_ok=True)
    used = {name for node in graph.node for name in node.input}
    kept = {name: weights[name] for name in sorted(weights) if name in used}
    apart = 4 * sum(weight.size for weight in kept.values()) > EXTERNAL_FROM_BYTES
    casts = []
    with ExitStack() as stack:
        external = ExternalData(stack.enter_context(DataFile(data))) if apart else None
        for name, weight in kept.items():
            dtype = _exact_dtype(weight)
            values, stored = weight.values(dtype), name
            if dtype != np.float32:
                stored = name + _STORED
                casts.append(helper.make_node("Cast", [stored], [name], name=f"widen_{name}", to=TensorProto.FLOAT))
            if external is not None and values.nbytes >= INLINE_BYTES:
                external.add(stored, values)
            else:
                graph.initializer.append(numpy_helper.from_array(values, stored))
        if external is not None:
            graph.initializer.extend(external.initializers)
    # All in front: ONNX Runtime goes from the output back and takes of two inputs the one that stands later, so it
    # computes each of these right before the node that needs it. Placed there they would all be computed at once.
    nodes = [*casts, *graph.node]
    graph.ClearField("node")
    graph.node.extend(nodes)


def _exact_dtype(weight: Weight) -> Any:
    if weight.size < _NARROW_FROM:
        return np.float32
    for dtype in (np.float16, ml_dtypes.bfloat16):
        with np.errstate(over="ignore"):
            if all(np.array_equal(block.astype(dtype).astype(np.float32), block) for block in weight.blocks()):
                return dtype
    return np.float32
