"""Traced graphs compute what torch computes, on tile counts and grids that were not traced."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from export.checkpoint import read_checkpoint
from export.vision import trace
from export.vision.graph import max_error, operators
from export.vision.load import load_vision
from export.vision.names import OPSET, PROJECTOR_FILE, TOWER_FILE, scale_inputs
from export.vision.trace import TraceErrors, trace_vision
from models.checkpoint import load_checkpoint
from runtime.errors import ExportError
from runtime.tiling import TilingSpec, layout_for, s2_matrices
from tests.models.tiny import write_llava, write_nvila

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, TraceErrors]:
    return traced(write_llava(tmp_path_factory.mktemp("l") / "llava", dtype=torch.float16))


@pytest.fixture(scope="module")
def nvila(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, TraceErrors]:
    return traced(
        write_nvila(tmp_path_factory.mktemp("n") / "nvila", scales=(28, 56, 84), resize_output_to_scale_idx=-1)
    )


def traced(root: Path) -> tuple[Path, Path, TraceErrors]:
    """(checkpoint, folder of its graphs, measured errors)."""
    out = root.parent / "graphs"
    out.mkdir()
    return root, out, trace_vision(read_checkpoint(root), out)


def run(path: Path, **inputs: Any) -> Any:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {name: np.asarray(value, np.float32) for name, value in inputs.items()})[0]


def noise(*shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_llava_graphs_are_the_torch_model(llava: tuple[Path, Path, TraceErrors], count: int) -> None:
    root, graphs, _ = llava
    model, _ = load_checkpoint(root)
    tiles = noise(count, 3, 28, 28)
    features = run(graphs / TOWER_FILE, tiles=tiles)
    assert features.shape == (count, 16, 16)
    embeds = run(graphs / PROJECTOR_FILE, features=features)
    with torch.no_grad():
        expected = model.encode_images(torch.from_numpy(tiles)).flatten(0, 1).numpy()
    np.testing.assert_allclose(embeds, expected, atol=2e-5)


@pytest.mark.parametrize("size", [(84, 84), (60, 200), (300, 50)])
def test_nvila_graphs_are_the_torch_model_on_grids_not_traced(
    nvila: tuple[Path, Path, TraceErrors], size: tuple[int, int]
) -> None:
    root, graphs, _ = nvila
    model, _ = load_checkpoint(root)
    checkpoint = read_checkpoint(root)
    tiling = checkpoint.tiling
    spec = TilingSpec("dynamic_s2", 28, 4, tiling.min_tiles, tiling.max_tiles, False, tiling.scales_px, -1, 2)
    layout = layout_for(*size, spec)
    tiles = noise(layout.num_tiles, 3, 28, 28)
    features = run(graphs / TOWER_FILE, tiles=tiles)
    names = [name for pair in scale_inputs(3) for name in pair]
    matrices = [matrix for pair in s2_matrices(layout, spec) for matrix in pair]
    embeds = run(graphs / PROJECTOR_FILE, features=features, **dict(zip(names, matrices, strict=True)))
    with torch.no_grad():
        (expected,) = model.encode_images(torch.from_numpy(tiles), block_sizes=[layout.grid])
    assert embeds.shape == (layout.num_image_tokens, 64)
    np.testing.assert_allclose(embeds, expected.numpy(), atol=2e-5)


def test_plain_block_is_one_tile_repeated_for_each_scale(nvila: tuple[Path, Path, TraceErrors]) -> None:
    root, graphs, _ = nvila
    model, _ = load_checkpoint(root)
    tile = noise(1, 3, 28, 28)
    features = np.repeat(run(graphs / TOWER_FILE, tiles=tile), 3, axis=0)
    identity = {name: np.eye(4) for pair in scale_inputs(3) for name in pair}
    embeds = run(graphs / PROJECTOR_FILE, features=features, **identity)
    with torch.no_grad():
        (expected,) = model.encode_images(torch.from_numpy(tile), block_sizes=[None])
    np.testing.assert_allclose(embeds, expected.numpy(), atol=2e-5)


def test_graphs_are_plain_onnx_without_the_layers_after_the_selected_one(
    llava: tuple[Path, Path, TraceErrors], nvila: tuple[Path, Path, TraceErrors]
) -> None:
    for _, graphs, errors in (llava, nvila):
        assert 0 < errors.tower_max_error < 1e-4
        assert errors.projector_max_error < 1e-4
        for name in (TOWER_FILE, PROJECTOR_FILE):
            raw = (graphs / name).read_bytes()
            model = onnx.load_from_string(raw)
            assert [(item.domain, item.version) for item in model.opset_import] == [("", OPSET)]
            assert not model.functions
            assert b".py" not in raw
            assert not any(node.doc_string or node.metadata_props for node in model.graph.node)
    tower = onnx.load(llava[1] / TOWER_FILE)
    assert operators(tower)["Softmax"] == 2, "two of three layers"


def test_free_dimensions_are_named(nvila: tuple[Path, Path, TraceErrors]) -> None:
    graph = onnx.load(nvila[1] / PROJECTOR_FILE).graph
    dims = {value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim] for value in graph.input}
    assert dims["features"] == ["T", 16, read_checkpoint(nvila[0]).channels]
    assert dims["area_h_2"] == ["H", "h_2"]
    assert dims["area_w_0"] == ["W", "w_0"]


def test_half_weights_are_stored_as_such_and_widened(llava: tuple[Path, Path, TraceErrors]) -> None:
    root, graphs, _ = llava
    model = onnx.load(graphs / TOWER_FILE)
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer if np.prod(tensor.dims) >= 64}
    assert onnx.TensorProto.FLOAT16 in kinds.values()
    weights = load_vision(read_checkpoint(root)).tower.vision_tower.state_dict()
    stored = [onnx.numpy_helper.to_array(t) for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT16]
    patch = weights["embeddings.patch_embedding.weight"].numpy()
    assert any(value.shape == patch.shape and np.array_equal(value.astype(np.float32), patch) for value in stored)


def test_tracing_again_gives_the_same_bytes(llava: tuple[Path, Path, TraceErrors], tmp_path: Path) -> None:
    root, graphs, _ = llava
    trace_vision(read_checkpoint(root), tmp_path)
    for name in (TOWER_FILE, PROJECTOR_FILE):
        assert (tmp_path / name).read_bytes() == (graphs / name).read_bytes()


def test_graph_that_differs_from_torch_is_refused(
    llava: tuple[Path, Path, TraceErrors], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace, "ERROR_LIMIT", 1e-12)
    with pytest.raises(ExportError, match="differs from torch"):
        trace_vision(read_checkpoint(llava[0]), tmp_path)


def test_values_that_are_not_finite_are_refused() -> None:
    assert max_error([np.ones(2)], [np.zeros(2)]) == 1
    for wrong in (np.array([np.nan, 0]), np.zeros(3)):
        with pytest.raises(ExportError):
            max_error([wrong], [np.zeros(2)])
