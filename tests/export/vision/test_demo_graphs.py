"""The graphs that the demo checkpoints carry are what tracing them today gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from export.checkpoint import read_checkpoint
from export.fingerprint import Fingerprint
from export.stages import traced_key
from export.vision.names import PROJECTOR_FILE, TOWER_FILE
from export.vision.stored import FOLDER, read_traced
from export.vision.trace import trace_vision

pytestmark = pytest.mark.torch
DEMO = Path(__file__).resolve().parents[3] / "models" / "demo"
REFRESH = "run: python scripts/refresh_demo.py"


@pytest.mark.parametrize("name", ["demo-llava", "demo-nvila"])
def test_stored_graphs_equal_newly_traced_ones(name: str, tmp_path: Path) -> None:
    checkpoint = read_checkpoint(DEMO / name)
    key = traced_key(Fingerprint(checkpoint.root, checkpoint.files), checkpoint.vision_files)
    stored = read_traced(checkpoint.root / FOLDER, key)
    assert stored is not None, f"weights or tracing code changed; {REFRESH}"
    trace_vision(checkpoint, tmp_path)
    for file in (TOWER_FILE, PROJECTOR_FILE):
        ours, fresh = onnx.load(stored.folder / file).graph, onnx.load(tmp_path / file).graph
        assert list(map(described, ours.node)) == list(map(described, fresh.node)), f"{file}; {REFRESH}"
        inputs = example(ours)
        for got, want in zip(run(stored.folder / file, inputs), run(tmp_path / file, inputs), strict=True):
            np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)


def described(node: onnx.NodeProto) -> tuple[str, list[str], list[str], list[bytes]]:
    attributes = sorted(attribute.SerializeToString(deterministic=True) for attribute in node.attribute)
    return node.op_type, list(node.input), list(node.output), attributes


def example(graph: onnx.GraphProto) -> dict[str, np.ndarray]:
    """Random inputs; for the matrices the grid of one tile per scale, merged to one block."""
    shapes = {value.name: [d.dim_value for d in value.type.tensor_type.shape.dim] for value in graph.input}
    pairs = sum(name.startswith("area_h") for name in shapes)
    source, inputs = np.random.default_rng(3), {}
    for name, shape in shapes.items():
        if name.startswith("area"):
            inputs[name] = np.eye(round(shapes["features"][1] ** 0.5), dtype=np.float32)
        else:
            inputs[name] = source.standard_normal([pairs or 3, *shape[1:]]).astype(np.float32)
    return inputs


def run(path: Path, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return list(session.run(None, inputs))
