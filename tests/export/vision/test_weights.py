"""Weights on their way into a graph: exact, in the narrowest type, one at a time, apart when they are large."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
ml_dtypes = pytest.importorskip("ml_dtypes")
numpy_files = pytest.importorskip("safetensors.numpy")

from export.decoder.safetensors_file import SafetensorsFile  # noqa: E402
from export.vision import weights as module  # noqa: E402
from export.vision.weights import HeldWeight, StoredWeight, data_file, store_weights  # noqa: E402

helper, numpy_helper = onnx.helper, onnx.numpy_helper
NOISE = np.random.default_rng(0).standard_normal((40, 9)).astype(np.float32)
HALF = NOISE.astype(np.float16).astype(np.float32)
BRAIN = (NOISE * 1e-20).astype(ml_dtypes.bfloat16).astype(np.float32)  # below f16's range


def graph_of(*names: str) -> Any:
    """y = the sum of all weights, as a model that lacks them."""
    y = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, list(NOISE.shape))
    graph = helper.make_graph([helper.make_node("Sum", list(names), ["y"])], "g", [], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def constants(model: Any, folder: Path) -> dict[str, Any]:
    """Values by the name that a node takes, widened by their Casts."""
    stored = {t.name: numpy_helper.to_array(t, str(folder)) for t in model.graph.initializer}
    casts = {n.input[0]: n.output[0] for n in model.graph.node if n.op_type == "Cast"}
    return {casts.get(name, name): value.astype(np.float32) for name, value in stored.items()}


@pytest.mark.parametrize("block_bytes", [1, 100, 1 << 20])
def test_a_stored_tensor_is_read_as_it_lies_or_turned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int
) -> None:
    monkeypatch.setattr(module, "_BLOCK_BYTES", block_bytes)
    tensors = {"m": HALF.astype(np.float16), "v": NOISE[0], "s": np.array(2.5, np.float32)}
    numpy_files.save_file(tensors, tmp_path / "w.safetensors")
    with SafetensorsFile(tmp_path / "w.safetensors") as file:
        turned = StoredWeight(file, "m", transposed=True)
        assert turned.size == HALF.size
        np.testing.assert_array_equal(turned.values(), HALF.T)
        assert turned.values(np.float16).flags.c_contiguous
        np.testing.assert_array_equal(StoredWeight(file, "m").values(np.float16), HALF.astype(np.float16))
        np.testing.assert_array_equal(StoredWeight(file, "v").values(), NOISE[0])
        assert StoredWeight(file, "s").values() == np.float32(2.5)


@pytest.mark.parametrize("limit", [0, 1 << 20], ids=["apart", "inside"])
def test_each_weight_takes_the_narrowest_type_that_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr(module, "EXTERNAL_FROM_BYTES", limit)
    monkeypatch.setattr(module, "INLINE_BYTES", 4 * 63 + 1)
    values = {"half": HALF, "brain": BRAIN, "full": NOISE, "few": HALF[:7]}
    weights = {name: HeldWeight(value) for name, value in values.items()} | {"unused": HeldWeight(NOISE)}
    model = graph_of("half", "brain", "full", "few")
    path = tmp_path / "g.onnx"
    store_weights(model, weights, path)
    kinds = {t.name: onnx.TensorProto.DataType.Name(t.data_type) for t in model.graph.initializer}
    assert kinds == {"half_stored": "FLOAT16", "brain_stored": "BFLOAT16", "full": "FLOAT", "few": "FLOAT"}
    found = constants(model, tmp_path)
    for name, value in values.items():
        np.testing.assert_array_equal(found[name], value)
    outside = {t.name for t in model.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL}
    assert outside == ({"half_stored", "brain_stored", "full"} if limit == 0 else set())
    assert data_file(path).exists() == (limit == 0)
    assert [node.op_type for node in model.graph.node] == ["Cast", "Cast", "Sum"], "casts in front"


def test_the_same_weights_give_the_same_bytes_whatever_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "EXTERNAL_FROM_BYTES", 0)
    written = []
    for names in (["a", "b", "c"], ["c", "a", "b"]):
        model, path = graph_of("a", "b", "c"), tmp_path / "g.onnx"
        arrays = {"a": HALF, "b": BRAIN, "c": NOISE}
        store_weights(model, {name: HeldWeight(arrays[name]) for name in names}, path)
        written.append((model.SerializeToString(deterministic=True), data_file(path).read_bytes()))
    assert written[0] == written[1]


def test_a_data_file_of_an_earlier_graph_does_not_stay(tmp_path: Path) -> None:
    path = tmp_path / "g.onnx"
    data_file(path).write_bytes(b"old")
    store_weights(graph_of("half"), {"half": HeldWeight(HALF)}, path)
    assert not data_file(path).exists()
