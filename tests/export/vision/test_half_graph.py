"""A graph in f16: every weight rounded once and kept in range, inputs and outputs f32, data apart where it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")

from export.vision import weights as module  # noqa: E402
from export.vision.half_graph import write_half_graph  # noqa: E402
from export.vision.weights import HeldWeight, data_file, store_weights  # noqa: E402

helper, numpy_helper = onnx.helper, onnx.numpy_helper
NOISE = np.random.default_rng(0).standard_normal((32, 32)).astype(np.float32)
LARGE = np.where(np.arange(64) == 5, 1e6, 0.5).astype(np.float32)


def source_graph(path: Path) -> None:
    """y = 2 x @ NOISE, and z = a constant with a value beyond f16's range."""
    x, y, z = (
        helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, s)
        for n, s in (("x", ["n", 32]), ("y", ["n", 32]), ("z", [64]))
    )
    nodes = [helper.make_node("MatMul", ["x", "w"], ["p"]), helper.make_node("Mul", ["p", "two"], ["y"])]
    nodes.append(helper.make_node("Identity", ["large"], ["z"]))
    graph = helper.make_graph(nodes, "g", [x], [y, z], [numpy_helper.from_array(np.array(2, np.float32), "two")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    store_weights(
        model, {"w": HeldWeight(NOISE.astype(np.float16).astype(np.float32)), "large": HeldWeight(LARGE)}, path
    )
    path.write_bytes(model.SerializeToString())


def run(path: Path, x: Any) -> list[Any]:
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})


@pytest.mark.parametrize("apart", [True, False])
def test_half_graph_computes_in_f16_and_keeps_its_borders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, apart: bool
) -> None:
    if apart:
        monkeypatch.setattr(module, "EXTERNAL_FROM_BYTES", 0)
    source, target = tmp_path / "source.onnx", tmp_path / "target.onnx"
    source_graph(source)
    write_half_graph(source, target)
    assert data_file(target).exists() == data_file(source).exists() == apart
    model = onnx.load(target)
    assert [value.name for value in model.graph.input] == ["x"]
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert set(kinds.values()) == {onnx.TensorProto.FLOAT16}
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    np.testing.assert_array_equal(stored["w"], NOISE.astype(np.float16))
    x = np.random.default_rng(1).standard_normal((3, 32)).astype(np.float32)
    y, z = run(target, x)
    assert y.dtype == z.dtype == np.float32
    expected = 2 * (x.astype(np.float64) @ NOISE.astype(np.float64))
    np.testing.assert_allclose(y, expected, atol=0.01 * np.abs(expected).max())
    assert z[5] == 65504 and z[0] == 0.5, "clamped to f16's largest value instead of infinity"
