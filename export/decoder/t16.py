"""Writes the weights of the CUDA decoder: ``decoder/t16.safetensors``, matrix by matrix. docs/bundle.md describes it.

The linears of one input are one matrix in the row order that the kernels' epilogues take; a head of eight bits is two
halves of four (kernels.packing.t16). Norms and biases are f32.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from export.decoder.checkpoint import DecoderCheckpoint, Linear
from export.decoder.external_data import DataFile
from export.decoder.integer_stream import BLOCK_BYTES, finite
from export.decoder.safetensors_writer import SafetensorsWriter, TensorSpec
from kernels.packing import IntWeight, pack
from kernels.packing.t16 import TILE_ROWS, Order, gate_up_order, qkv_order, split_int8, steps_of, tiles_of
from runtime.bundle.manifest import Activations
from runtime.errors import ExportError

VERSION = "1"
HEAD = "lm_head"
MATRICES: Mapping[str, tuple[str, ...]] = {  # of a layer, in the order of the digest
    "qkv": ("q", "k", "v"),
    "o": ("o",),
    "gate_up": ("gate", "up"),
    "down": ("down",),
}
NORMS = {"input_norm": "input_layernorm", "post_norm": "post_attention_layernorm"}
DIGEST_LENGTH = 64


class T16File:
    """The file while it is written: :meth:`through` for every matrix in canonical order, then :meth:`finish`.

    Holds one matrix of a layer as bytes; the head streams by. A context manager.
    """

    def __init__(self, path: Path, checkpoint: DecoderCheckpoint, group_size: int, activations: Activations) -> None:
        self._checkpoint, self._group_size = checkpoint, group_size
        self._file = DataFile(path)
        try:
            metadata = {
                "format": "t16",
                "version": VERSION,
                "group_size": str(group_size),
                "activations": activations,
                "digest": "0" * DIGEST_LENGTH,
            }
            self._writer = SafetensorsWriter(self._file, t16_tensors(checkpoint, group_size), metadata)
            for name, values in _small_tensors(checkpoint):
                self._writer.append(name, values.astype("<f4", copy=False))
        except BaseException as problem:
            self._file.__exit__(type(problem))
            raise

    def __enter__(self) -> T16File:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._file.__exit__(kind)

    def through(self, name: str, linears: Sequence[Linear], rows: Iterator[IntWeight]) -> Iterator[IntWeight]:
        """Passes the rows of the matrix ``name`` ("layers.0.qkv", …, "lm_head") on, and has stored them at its end."""
        order = self._row_order(name.rpartition(".")[2])
        target = _Matrix(self._writer, "head" if name == HEAD else name)
        kept = None if order is None else _WholeMatrix(linears, self._group_size)
        for block in rows:
            if kept is None:
                target.append(_four_bits(name, block))
            else:
                kept.append(block)
            yield block
        if kept is not None and order is not None:
            for block in kept.in_order(order):
                target.append(block)
        target.finish()

    def finish(self, digest: str) -> None:
        """Puts the digest in. ValueError when a matrix is missing."""
        self._writer.finish()
        self._writer.replace_metadata("digest", digest)

    def _row_order(self, matrix: str) -> Order | None:
        """Which row of the linears below one another each stored row is; None where they stay as they are."""
        c = self._checkpoint.config
        if matrix == "qkv":
            return qkv_order(c.heads, c.kv_heads, c.head_dim)
        return gate_up_order(c.ffn) if matrix == "gate_up" else None


def t16_tensors(checkpoint: DecoderCheckpoint, group_size: int) -> dict[str, TensorSpec]:
    """Dtype and shape of every tensor of the file, in its order: norms and biases, the layers' matrices, the head."""
    tensors = {name: TensorSpec("F32", (n,)) for name, n in _small_shapes(checkpoint)}
    for index in range(checkpoint.config.layers):
        layer = checkpoint.layer(index)
        for matrix, parts in MATRICES.items():
            n, k = sum(layer[part].n for part in parts), layer[parts[0]].k
            tensors |= _matrix_tensors(f"layers.{index}.{matrix}", n, k, group_size)
    head = checkpoint.head()
    return tensors | _matrix_tensors("head", head.n, head.k * checkpoint.head_bits // 4, group_size)


def t16_bytes(checkpoint: DecoderCheckpoint, group_size: int) -> int:
    """Bytes of the file, without its header."""
    return sum(spec.nbytes for spec in t16_tensors(checkpoint, group_size).values())


def _matrix_tensors(name: str, n: int, k: int, group_size: int) -> dict[str, TensorSpec]:
    tiles = tiles_of(n)
    return {
        f"{name}.qw": TensorSpec("U32", (tiles, steps_of(k), 32, 4)),
        f"{name}.sc": TensorSpec("F16", (tiles, k // group_size, 8, 2)),
        f"{name}.zp": TensorSpec("U8", (tiles, k // group_size, 8)),
    }


def _small_shapes(checkpoint: DecoderCheckpoint) -> Iterator[tuple[str, int]]:
    c = checkpoint.config
    for index in range(c.layers):
        at, layer = f"layers.{index}", checkpoint.layer(index)
        yield from ((f"{at}.{norm}", c.hidden) for norm in NORMS)
        for matrix, parts in MATRICES.items():
            if layer[parts[0]].bias:
                yield f"{at}.{matrix}.bias", sum(layer[part].n for part in parts)
    yield "norm", c.hidden


def _small_tensors(checkpoint: DecoderCheckpoint) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    """Norms, and biases in the row order of their matrix. ExportError for values that are not finite."""
    c = checkpoint.config
    for name, _ in _small_shapes(checkpoint):
        at, _, last = name.rpartition(".")
        if last != "bias":
            stored = f"{at}.{NORMS[last]}" if at else last
            yield name, finite(stored, checkpoint.norm(stored))
            continue
        at, _, matrix = at.rpartition(".")
        linears = [checkpoint.layer(int(at.rpartition(".")[2]))[part] for part in MATRICES[matrix]]
        bias = np.concatenate([finite(f"{each.name}.bias", checkpoint.bias(each)) for each in linears])
        yield name, bias[qkv_order(c.heads, c.kv_heads, c.head_dim)] if matrix == "qkv" else bias


def _four_bits(name: str, block: IntWeight) -> IntWeight:
    if block.bits == 4:
        return block
    try:
        return split_int8(block)
    except ValueError as problem:
        raise ExportError(f"{name}: {problem}", hint="use --decoder onnx for this checkpoint") from problem


class _Matrix:
    """Packs rows into whole tiles as they come; the scales and zero points follow when the last tile is written."""

    def __init__(self, writer: SafetensorsWriter, name: str) -> None:
        self._writer, self._name = writer, name
        self._left: IntWeight | None = None
        self._scales: list[npt.NDArray[Any]] = []
        self._zeros: list[npt.NDArray[Any]] = []

    def append(self, block: IntWeight) -> None:
        block = block if self._left is None else _below(self._left, block)
        whole = block.shape[0] // TILE_ROWS * TILE_ROWS
        if whole:
            self._write(_rows(block, slice(0, whole)))
        self._left = _rows(block, slice(whole, None)) if whole < block.shape[0] else None

    def finish(self) -> None:
        if self._left is not None:
            self._write(self._left)
        self._writer.append(f"{self._name}.sc", np.concatenate(self._scales))
        self._writer.append(f"{self._name}.zp", np.concatenate(self._zeros))

    def _write(self, block: IntWeight) -> None:
        tensors = pack(block, "t16")
        self._writer.append(f"{self._name}.qw", tensors["qw"])
        self._scales.append(tensors["sc"])
        self._zeros.append(tensors["zp"])


class _WholeMatrix:
    """The rows of a matrix of four bits, kept until they can be taken in another order."""

    def __init__(self, linears: Sequence[Linear], group_size: int) -> None:
        n, k = sum(linear.n for linear in linears), linears[0].k
        self._q = np.empty((n, k), np.uint8)
        self._zeros = np.empty((n, k // group_size), np.uint8)
        self._scales = np.empty((n, k // group_size), np.float16)
        self._group_size, self._rows = group_size, 0

    def append(self, block: IntWeight) -> None:
        at = slice(self._rows, self._rows + block.shape[0])
        self._q[at], self._zeros[at], self._scales[at] = block.q, block.zeros, block.scales
        self._rows = at.stop

    def in_order(self, order: Order) -> Iterator[IntWeight]:
        """The rows in another order, some whole tiles at a time."""
        step = max(1, BLOCK_BYTES // (4 * self._q.shape[1] * TILE_ROWS)) * TILE_ROWS
        for begin in range(0, len(order), step):
            rows = order[begin : begin + step]
            yield IntWeight(self._q[rows], self._zeros[rows], self._scales[rows], self._group_size)


def _rows(weight: IntWeight, rows: slice) -> IntWeight:
    return IntWeight(weight.q[rows], weight.zeros[rows], weight.scales[rows], weight.group_size, weight.bits)


def _below(upper: IntWeight, lower: IntWeight) -> IntWeight:
    return IntWeight(
        np.concatenate([upper.q, lower.q]),
        np.concatenate([upper.zeros, lower.zeros]),
        np.concatenate([upper.scales, lower.scales]),
        upper.group_size,
        upper.bits,
    )
