"""The bundles that the package embeds are what their checkpoints export to, without torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from export.build import BuildRequest, build
from export.progress import Progress
from runtime.bundle import Bundle, load_bundle
from runtime.tiling import layout_for, s2_matrices

ROOT = Path(__file__).resolve().parents[2]
EMBEDDED = ROOT / "runtime" / "demo"
MAX_BYTES_TOGETHER = 10_000_000
REFRESH = "run: python scripts/refresh_demo.py"


@pytest.fixture(scope="module", params=["demo-llava", "demo-nvila"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Bundle]:
    """(embedded, rebuilt) bundles of one model."""
    out = tmp_path_factory.mktemp("rebuilt") / request.param
    result = build(BuildRequest(ROOT / "models" / "demo" / request.param, out), Progress())
    assert {stage.stage: stage.action for stage in result.stages}["onnx"] == "stored graphs", REFRESH
    return load_bundle(EMBEDDED / request.param, "full"), load_bundle(out, "none")


def test_the_integers_of_the_embedded_bundle_are_those_of_the_checkpoint(pair: tuple[Bundle, Bundle]) -> None:
    embedded, rebuilt = pair
    assert embedded.manifest.quantization == rebuilt.manifest.quantization, REFRESH
    assert embedded.manifest.source.digest == rebuilt.manifest.source.digest, REFRESH
    assert embedded.manifest.prompt == rebuilt.manifest.prompt, REFRESH
    assert embedded.manifest.vision == rebuilt.manifest.vision, REFRESH
    assert embedded.manifest.decoder == rebuilt.manifest.decoder, REFRESH


def test_the_graphs_of_the_embedded_bundle_agree_node_by_node(pair: tuple[Bundle, Bundle]) -> None:
    embedded, rebuilt = pair
    for name in ("vision_tower.onnx", "vision_projector.onnx", "decoder/decoder.onnx"):
        ours, fresh = nodes(embedded.file(name)), nodes(rebuilt.file(name))
        assert len(ours) > 1
        assert ours == fresh, f"{name}: {REFRESH}"


def test_the_outputs_of_the_embedded_vision_graphs_agree(pair: tuple[Bundle, Bundle]) -> None:
    embedded, rebuilt = pair
    for ours, fresh in zip(vision_outputs(embedded), vision_outputs(rebuilt), strict=True):
        np.testing.assert_allclose(ours, fresh, rtol=0, atol=1e-4)


def test_the_token_table_and_weights_agree_byte_by_byte(pair: tuple[Bundle, Bundle]) -> None:
    embedded, rebuilt = pair
    for name in ("decoder/decoder.onnx.data", "decoder/t16.safetensors", "decoder/token_embeds.bin", "tokenizer.json"):
        assert embedded.file(name).read_bytes() == rebuilt.file(name).read_bytes(), f"{name}: {REFRESH}"


def test_the_embedded_bundles_are_small() -> None:
    files = [path for path in EMBEDDED.rglob("*") if path.is_file() and path.parent != EMBEDDED]
    assert len(files) >= 14
    assert sum(path.stat().st_size for path in files) <= MAX_BYTES_TOGETHER


def nodes(path: Path) -> list[tuple[str, str, list[str], list[str], list[str]]]:
    """What each node of a graph is and does, in order."""
    graph = onnx.load(path, load_external_data=False).graph
    return [
        (
            node.domain,
            node.op_type,
            list(node.input),
            list(node.output),
            sorted(attribute.SerializeToString(deterministic=True).hex() for attribute in node.attribute),
        )
        for node in graph.node
    ]


def vision_outputs(bundle: Bundle) -> Iterator[np.ndarray[Any, Any]]:
    """Features and image embeddings of one random picture, straight from ONNX Runtime."""
    vision = bundle.manifest.vision
    spec = vision.tiling_spec()
    layout = layout_for(90, 160, spec)
    side = vision.tower.tile_px
    tiles = np.random.default_rng(3).standard_normal((layout.num_tiles, 3, side, side)).astype(np.float32)
    tower = onnxruntime.InferenceSession(bundle.file(vision.tower.file), providers=["CPUExecutionProvider"])
    (features,) = tower.run(None, {vision.tower.input: tiles})
    yield features
    feeds = {vision.projector.input: features}
    for names, matrices in zip(vision.projector.scale_inputs, s2_matrices(layout, spec), strict=True):
        feeds |= dict(zip(names, matrices, strict=True))
    projector = onnxruntime.InferenceSession(bundle.file(vision.projector.file), providers=["CPUExecutionProvider"])
    (embeds,) = projector.run(None, feeds)
    assert embeds.shape == (layout.num_image_tokens, bundle.manifest.decoder.hidden)
    yield embeds
