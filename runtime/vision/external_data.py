"""Which files an ONNX graph takes its weights from, read without the onnx library.

ONNX Runtime follows the paths in a graph by itself; a bundle's files are checked by name, size and hash first, so the
graph must not name any other. The file is mapped and stepped through by lengths: weights inside it are never touched.
Fields (onnx.proto): ModelProto.graph 7; GraphProto.node 1, .initializer 5, .sparse_initializer 15; NodeProto.attribute
5; AttributeProto.t 5, .g 6, .tensors 10, .graphs 11, .sparse_tensor 22, .sparse_tensors 23; SparseTensorProto.values 1,
.indices 2; TensorProto.external_data 13; StringStringEntryProto.key 1, .value 2.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path

from runtime.bundle import Bundle
from runtime.bundle.manifest import GRAPH_DATA_SUFFIX
from runtime.errors import BundleError

_MAX_DEPTH = 32
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
# For each message, the fields that lead to external data.
_WAYS: Mapping[str, Mapping[int, str]] = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
_HINT = "build the bundle again: python -m export.build_engines <checkpoint> --out <bundle>"


def external_files(path: Path) -> frozenset[str]:
    """The locations that the graph at ``path`` names. Raises BundleError for a file that is not an ONNX model."""
    with path.open("rb") as file:
        try:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return frozenset(_locations(data, 0, len(data), "model", 0))
        except (ValueError, UnicodeDecodeError) as problem:  # an empty file cannot be mapped
            raise BundleError(f"{path}: not an ONNX model: {problem}", hint=_HINT) from problem


def check_external_data(bundle: Bundle, graph: str) -> None:
    """Refuses a graph of a bundle that takes weights from any file but ``<graph>.data`` of the same bundle.

    Raises BundleError that names the file: another location, a file that the manifest does not list (so that nobody
    checked it), or one that is missing.
    """
    own = f"{graph}{GRAPH_DATA_SUFFIX}"
    for location in sorted(external_files(bundle.file(graph))):
        if location != own.rpartition("/")[2]:
            raise BundleError(
                f"{bundle.path / graph}: takes weights from {location!r}, only {own!r} is allowed", hint=_HINT
            )
        bundle.file(own)


def _locations(data: mmap.mmap, begin: int, end: int, kind: str, depth: int) -> Iterator[str]:
    if depth > _MAX_DEPTH:
        raise ValueError(f"nested more than {_MAX_DEPTH} levels deep")
    ways = _WAYS[kind]
    for field, start, stop in _messages(data, begin, end):
        inner = ways.get(field)
        if inner == "entry":
            entry = {number: data[first:last].decode() for number, first, last in _messages(data, start, stop)}
            if entry.get(1) == "location":
                yield entry.get(2, "")
        elif inner is not None:
            yield from _locations(data, start, stop, inner, depth + 1)


def _messages(data: mmap.mmap, begin: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(field number, begin, end) of each field with a length, in the order of the file."""
    at = begin
    while at < end:
        tag, at = _varint(data, at, end)
        wire = tag & 7
        if wire == _BYTES:
            size, at = _varint(data, at, end)
            if size > end - at:
                raise ValueError(f"a field of {size} bytes at {at} ends behind its message")
            yield tag >> 3, at, at + size
            at += size
        elif wire == _VARINT:
            _, at = _varint(data, at, end)
        elif wire in (_FIXED32, _FIXED64):
            at += 4 if wire == _FIXED32 else 8
        else:
            raise ValueError(f"wire type {wire} at byte {at}")
    if at != end:
        raise ValueError(f"a field ends behind byte {end}")


def _varint(data: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 64:
        byte = data[at]
        at, value, shift = at + 1, value | (byte & 0x7F) << shift, shift + 7
        if not byte & 0x80:
            return value, at
    raise ValueError(f"a number at byte {at} does not end")
