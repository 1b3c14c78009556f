"""Which arrays a decoder needs in device memory: a list that is summed up before anything is allocated.

Arrays of one purpose share allocations ("pieces") of at most 150 MB, since Jetsons refuse large contiguous ones.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from kernels.arrays import NUMPY, DType
from kernels.launch.kv import slot_bytes
from kernels.packing.t16 import TILE_ROWS, tiles_of
from kernels.state import DECODE_STATE, HEAD_PARTIAL, SAMPLE_PARAMS
from runtime.decoder.cuda.shape import STEP_TOKENS, CudaDecoderFiles, packed_tensors
from runtime.decoder.options import KvForm
from runtime.errors import MemoryLimitError

MAX_PIECE_BYTES = 150_000_000
ITEM_ALIGNMENT = 256

Purpose = Literal["weights", "LM head", "token table", "KV cache", "activations", "sampling"]
TableForm = Literal["f16", "bf16", "i8"]


@dataclass(frozen=True, slots=True)
class Item:
    """One array to be allocated."""

    name: str
    purpose: Purpose
    dtype: DType
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of its values."""
        return math.prod(self.shape) * np.dtype(NUMPY[self.dtype]).itemsize

    @property
    def room(self) -> int:
        """Bytes that it takes in a piece."""
        return -(-self.nbytes // ITEM_ALIGNMENT) * ITEM_ALIGNMENT


@dataclass(frozen=True, slots=True)
class Rows:
    """A run of rows of something that is too large for one piece."""

    first: int
    count: int


def pieces(items: Iterable[Item]) -> Iterator[list[Item]]:
    """Items in order, as many of one purpose together as a piece holds. MemoryLimitError for one that none holds."""
    piece: list[Item] = []
    size = 0
    for item in items:
        if item.room > MAX_PIECE_BYTES:
            message = (
                f"{item.name} takes {item.nbytes / 1e6:.0f} MB in one piece, the limit is {MAX_PIECE_BYTES / 1e6:.0f}"
            )
            raise MemoryLimitError(message, hint="build the bundle with a smaller --max-seq-len, or take kv='i8'")
        if piece and (item.purpose != piece[0].purpose or size + item.room > MAX_PIECE_BYTES):
            yield piece
            piece, size = [], 0
        piece.append(item)
        size += item.room
    if piece:
        yield piece


def purpose_bytes(items: Iterable[Item]) -> Counter[str]:
    """Bytes in device memory by purpose."""
    total: Counter[str] = Counter()
    for item in items:
        total[item.purpose] += item.room
    return total


def weight_items(files: CudaDecoderFiles, biases: Iterable[str]) -> list[Item]:
    """Norms, the layers' matrices and biases under the names of the file, and the rotation table."""
    known = files.tensors() | {name: files.biases()[name] for name in biases}
    items = [Item(name, "weights", *spec) for name, spec in known.items() if not name.startswith("head.")]
    return [*items, Item("rope", "weights", "f32", (files.max_seq_len, files.head_dim // 2, 2))]


def head_rows(files: CudaDecoderFiles) -> list[Rows]:
    """The vocabulary's rows as the pieces of the LM head hold them, whole tiles each."""
    per_tile = sum(
        Item(name, "LM head", *spec).nbytes
        for name, spec in packed_tensors("head", TILE_ROWS, files.head()[1], files.group_size).items()
    )
    step = max(1, (MAX_PIECE_BYTES - 3 * ITEM_ALIGNMENT) // per_tile) * TILE_ROWS
    return _runs(files.vocab, step)


def head_items(files: CudaDecoderFiles) -> list[Item]:
    """The pieces of the LM head: ``head.0.qw`` …"""
    inputs = files.head()[1]
    return [
        Item(name, "LM head", *spec)
        for part, rows in enumerate(head_rows(files))
        for name, spec in packed_tensors(f"head.{part}", rows.count, inputs, files.group_size).items()
    ]


def table_rows(files: CudaDecoderFiles, form: TableForm) -> list[Rows]:
    """The token table's rows as its pieces hold them."""
    row_bytes = files.hidden * (1 if form == "i8" else 2)
    return _runs(files.embed_rows, max(1, (MAX_PIECE_BYTES - ITEM_ALIGNMENT) // row_bytes))


def table_items(files: CudaDecoderFiles, form: TableForm) -> list[Item]:
    """The pieces of the token table: ``table.0`` …, and ``table.0.scales`` … of an int8 one."""
    items = []
    for part, rows in enumerate(table_rows(files, form)):
        items.append(Item(f"table.{part}", "token table", form, (rows.count, files.hidden)))
        if form == "i8":
            items.append(Item(f"table.{part}.scales", "token table", "f32", (rows.count,)))
    return items


def cache_items(files: CudaDecoderFiles, kv: KvForm, slots: int) -> list[Item]:
    """Keys and values of every layer and slot (``kv.{layer}.{k|v}.{slot}``), and the tables of their addresses."""
    dtype = "i8" if kv == "i8" else files.activations
    size = slot_bytes(files.kv_heads, files.head_dim, files.max_seq_len, dtype)
    parts = [(layer, part) for layer in range(files.layers) for part in ("k", "v")]
    items = [
        Item(f"kv.{layer}.{part}.{slot}", "KV cache", "u8", (size,)) for slot in range(slots) for layer, part in parts
    ]
    return [*items, Item("kv.addresses", "KV cache", "u64", (files.layers, 2, slots))]


def activation_items(files: CudaDecoderFiles, kv: KvForm, partials: int) -> list[Item]:
    """Buffers of a pass over up to ``files.chunk`` rows. partials: values that split attention leaves."""
    rows, kind, step = files.chunk, files.activations, min(STEP_TOKENS, files.chunk)
    tiles = sum(tiles_of(part.count) for part in head_rows(files))
    shapes: dict[str, tuple[DType, tuple[int, ...]]] = {
        "residual": ("f32", (rows, files.hidden)),
        "normed": (kind, (rows, files.hidden)),
        "queries": (kind, (rows, files.heads, files.head_dim)),
        "attended": (kind, (rows, files.heads * files.head_dim)),
        "gated": (kind, (rows, files.ffn)),
        "delta": (kind, (rows, files.hidden)),
        "head_input": (kind, (step, files.head_copies * files.hidden)),
        "logits": ("f32", (step * files.vocab,)),
        "head_partials": ("u8", (tiles, step, HEAD_PARTIAL.itemsize)),
        "partials": ("f32", (partials,)),
        "states": ("u8", (2, DECODE_STATE.itemsize)),
        "ids": ("i32", (rows,)),
        "images": ("f32", (rows, files.hidden)),
    }
    if kv == "i8":
        size = slot_bytes(files.kv_heads, files.head_dim, rows, kind)
        shapes |= {"staged.k": ("u8", (size,)), "staged.v": ("u8", (size,)), "staged.addresses": ("u64", (2, 1))}
    return [Item(name, "activations", dtype, shape) for name, (dtype, shape) in shapes.items()]


def sampling_items(files: CudaDecoderFiles) -> list[Item]:
    """What choosing tokens on the device needs."""
    return [
        Item("sample_params", "sampling", "u8", (SAMPLE_PARAMS.itemsize,)),
        Item("seen", "sampling", "u32", (-(-files.vocab // 32),)),
        Item("sample_scratch", "sampling", "u32", (files.vocab,)),
    ]


def _runs(count: int, step: int) -> list[Rows]:
    return [Rows(first, min(step, count - first)) for first in range(0, count, step)]
