"""Writes safetensors files from pieces, one tensor at a time, in shards like a published checkpoint's. Torch-free."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from export.decoder.safetensors_file import ITEM_BYTES, OTHER_DTYPES
from export.decoder.weight_files import INDEX, SINGLE

MAX_SHARD_BYTES = 5_000_000_000
_DTYPES = {"float16": "F16", "int32": "I32", "int64": "I64", "float32": "F32"}
_METADATA = {"format": "pt"}  # what transformers asks for


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor to write: ``pieces`` gives its bytes (little-endian, row-major) when its turn comes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    pieces: Callable[[], Iterable[bytes]]


def array_entry(name: str, array: npt.NDArray[Any]) -> Entry:
    """An entry for an array in memory."""
    contiguous = np.ascontiguousarray(array)
    return Entry(name, _DTYPES[array.dtype.name], array.shape, contiguous.nbytes, lambda: [contiguous.tobytes()])


def plan_shards(entries: Iterable[Entry], limit: int = MAX_SHARD_BYTES) -> list[tuple[str, list[Entry]]]:
    """(file name, entries) of each shard of at most ``limit`` bytes, in the order of the entries; one is the rule.

    A tensor above the limit gets a shard of its own.
    """
    shards: list[list[Entry]] = [[]]
    filled = 0
    for entry in entries:
        if shards[-1] and filled + entry.nbytes > limit:
            shards.append([])
            filled = 0
        shards[-1].append(entry)
        filled += entry.nbytes
    if len(shards) == 1:
        return [(SINGLE, shards[0])]
    count = len(shards)
    return [(f"model-{number:05d}-of-{count:05d}.safetensors", shard) for number, shard in enumerate(shards, 1)]


def write_shards(folder: Path, shards: Sequence[tuple[str, Sequence[Entry]]], wrote: Callable[[int], None]) -> None:
    """Writes the files and, for several, their index; ``wrote`` is told the bytes of each tensor that is done."""
    for name, entries in shards:
        write_safetensors(folder / name, entries, wrote)
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(entry.nbytes for _, entries in shards for entry in entries)},
            "weight_map": {entry.name: name for name, entries in shards for entry in entries},
        }
        (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def write_safetensors(path: Path, entries: Sequence[Entry], wrote: Callable[[int], None] | None = None) -> None:
    """One safetensors file. Wide dtypes come first, as in the format's own writer, so that every tensor is aligned."""
    ordered = sorted(entries, key=lambda entry: (-_item_bytes(entry.dtype), entry.name))
    header: dict[str, Any] = {"__metadata__": _METADATA}
    at = 0
    for entry in ordered:
        offsets = [at, at + entry.nbytes]
        header[entry.name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": offsets}
        at += entry.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for entry in ordered:
            written = sum(file.write(piece) for piece in entry.pieces())
            assert written == entry.nbytes, f"{entry.name}: {written} bytes written, {entry.nbytes} announced"
            if wrote:
                wrote(written)


def as_f16(name: str, blocks: Iterator[npt.NDArray[np.float32]]) -> Iterator[bytes]:
    """f32 blocks as f16 bytes. Raises ValueError that names the tensor for a value that f16 does not hold."""
    for block in blocks:
        with np.errstate(over="ignore"):
            half = block.astype("<f2")
        if not np.isfinite(half).all():
            raise ValueError(f"{name}: has values that are not finite in f16 (largest: {np.abs(block).max():g})")
        yield half.tobytes()


def _item_bytes(dtype: str) -> int:
    return ITEM_BYTES.get(dtype, OTHER_DTYPES.get(dtype, 1))
