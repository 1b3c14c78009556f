"""A vision graph takes its weights from its own data file alone, and only when that file was checked."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.bundle import Bundle, FileEntry
from runtime.errors import BundleError
from runtime.vision.external_data import check_external_data, external_files
from tests.runtime.bundle_example import example_manifest

onnx = pytest.importorskip("onnx")
helper, numpy_helper = onnx.helper, onnx.numpy_helper

GRAPH, DATA = "vision_tower.onnx", "vision_tower.onnx.data"


def apart(name: str, location: str) -> Any:
    tensor = onnx.TensorProto(name=name, data_type=onnx.TensorProto.FLOAT, dims=[4])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("offset", "0"), ("location", location), ("length", "16")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def model(*initializers: Any, nodes: tuple[Any, ...] = ()) -> Any:
    x, y = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [4]) for name in "xy")
    kept = numpy_helper.from_array(np.full(4, 0x6A2A, np.int32), "inside")  # its bytes look like fields
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"]), *nodes], "g", [x], [y])
    graph.initializer.extend([kept, *initializers])
    return helper.make_model(graph)


def bundle(tmp_path: Path, graph: Any, *listed: str) -> Bundle:
    (tmp_path / GRAPH).write_bytes(graph.SerializeToString())
    manifest = example_manifest()
    files = {**manifest.files, **{name: FileEntry(16, "0" * 64) for name in listed}}
    return Bundle(tmp_path, dataclasses.replace(manifest, files=files))


def test_every_place_that_can_name_a_file_is_found(tmp_path: Path) -> None:
    constant = helper.make_node("Constant", [], ["c"], value=apart("c", "constant.bin"))
    inner = helper.make_graph([], "inner", [], [], [apart("i", "branch.bin")])
    branch = helper.make_node("If", ["x"], ["z"], then_branch=inner, else_branch=inner)
    sparse = onnx.SparseTensorProto(values=apart("v", "values.bin"), indices=apart("n", "indices.bin"), dims=[9])
    many = helper.make_node("Other", [], [], tensors=[apart("a", "list.bin")], graphs=[inner], sparse=sparse)
    whole = model(apart("w", DATA), apart("w2", "../../etc/passwd"), nodes=(constant, branch, many))
    whole.graph.sparse_initializer.append(sparse)
    called = helper.make_function("ours", "F", [], [], [helper.make_node("Constant", [], ["d"])], [])
    called.node[0].attribute.append(helper.make_attribute("value", apart("f", "function.bin")))
    whole.functions.append(called)
    (tmp_path / GRAPH).write_bytes(whole.SerializeToString())
    names = "constant branch values indices list function"
    expected = {DATA, "../../etc/passwd", *(f"{name}.bin" for name in names.split())}
    assert external_files(tmp_path / GRAPH) == expected


def test_a_graph_with_its_weights_inside_names_no_file(tmp_path: Path) -> None:
    (tmp_path / GRAPH).write_bytes(model(numpy_helper.from_array(np.ones(4, np.float32), "w")).SerializeToString())
    assert external_files(tmp_path / GRAPH) == frozenset()


def test_its_own_listed_file_is_accepted(tmp_path: Path) -> None:
    (tmp_path / DATA).write_bytes(bytes(16))
    check_external_data(bundle(tmp_path, model(apart("w", DATA)), DATA), GRAPH)


@pytest.mark.parametrize("location", ["other.data", f"../{DATA}", f"/tmp/{DATA}", f"./{DATA}", ""])
def test_any_other_file_is_refused_by_name(tmp_path: Path, location: str) -> None:
    (tmp_path / DATA).write_bytes(bytes(16))
    with pytest.raises(BundleError, match="takes weights from") as refused:
        check_external_data(bundle(tmp_path, model(apart("w", location)), DATA, "other.data"), GRAPH)
    assert repr(location) in str(refused.value)


def test_a_file_that_the_manifest_does_not_list_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / DATA).write_bytes(bytes(16))
    with pytest.raises(BundleError, match=rf"'{DATA}' is not a file of this bundle"):
        check_external_data(bundle(tmp_path, model(apart("w", DATA))), GRAPH)


def test_a_missing_file_and_a_link_are_refused_by_name(tmp_path: Path) -> None:
    ours = bundle(tmp_path, model(apart("w", DATA)), DATA)
    with pytest.raises(BundleError, match=rf"{DATA}: cannot be read"):
        check_external_data(ours, GRAPH)
    (tmp_path / DATA).symlink_to("/dev/zero")
    with pytest.raises(BundleError, match=rf"{DATA}: is a symbolic link"):
        check_external_data(ours, GRAPH)


@pytest.mark.parametrize("content", [b"", b"no graph", b"\x3a\x7f", b"\x3a\x02\x2a\x7f", b"\xff" * 12, b"\x0d\x00"])
def test_a_file_that_is_no_model_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / GRAPH).write_bytes(content)
    with pytest.raises(BundleError, match="not an ONNX model"):
        external_files(tmp_path / GRAPH)


def test_nesting_has_a_limit(tmp_path: Path) -> None:
    content = b""
    for field in (6, 5, 1) * 40:  # an attribute's graph, a node's attribute, a graph's node, ...
        size, length = len(content), b""
        while size > 127:
            length, size = length + bytes([size & 127 | 128]), size >> 7
        content = bytes([field << 3 | 2]) + length + bytes([size]) + content
    (tmp_path / GRAPH).write_bytes(b"\x3a" + _length(content) + content)
    with pytest.raises(BundleError, match="nested more than"):
        external_files(tmp_path / GRAPH)


def _length(content: bytes) -> bytes:
    size, length = len(content), b""
    while size > 127:
        length, size = length + bytes([size & 127 | 128]), size >> 7
    return length + bytes([size])
