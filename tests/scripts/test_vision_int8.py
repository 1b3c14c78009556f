"""The benchmark of int8 vision towers plants what it says, keeps fp32 as it was, and fails where smoothing fails."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.torch
pytest.importorskip("torch")


@pytest.fixture(scope="module")
def parts() -> Any:
    """(module, model as trained, model with outliers, packer, scenes) of demo-llava."""
    from scripts.bench import vision_int8 as bench
    from scripts.demo_model.evalset import eval_items
    from scripts.demo_model.release import load_for_evaluation

    model, packer = load_for_evaluation("demo-llava", ROOT / "models" / "demo" / "demo-llava")
    planted = copy.deepcopy(model)
    bench.plant_in_tower(planted.vision)
    return bench, model, planted, packer, list(eval_items(6, 2026, "demo-llava"))


def test_towers_are_compared_on_the_same_scenes(parts: Any, tmp_path: Path) -> None:
    bench, model, planted, packer, items = parts
    checkpoint = bench.write_checkpoint(
        planted, ROOT / "models" / "demo" / "demo-llava", tmp_path / "demo-llava-planted"
    )
    scales = bench.measured(checkpoint, items, tmp_path)
    assert (scales.layers, scales.tiles) == (4, 6)
    models = {"fp32": model, "planted-fp32": planted}
    models |= {kind: bench.in_int8(planted, scales, **how) for kind, how in bench.KINDS.items()}
    models[bench.GRAPH] = models["fixed-smoothed"]
    row = bench.scored(models, packer, items, "demo-llava", True)
    assert row["planted-fp32"]["feature_error"] < 1e-5
    assert row["planted-fp32"]["against_fp32_points"]["points"] == 0
    assert row["token-plain"]["feature_error"] > 5 * row["token-smoothed"]["feature_error"] > 0.02
    assert row["fixed-plain"]["feature_error"] > 0.4
    assert row["passed"]


def test_written_checkpoint_computes_what_the_planted_tower_does(parts: Any, tmp_path: Path) -> None:
    import torch

    from models.checkpoint import load_checkpoint

    bench, model, planted, _, items = parts
    root = bench.write_checkpoint(planted, ROOT / "models" / "demo" / "demo-llava", tmp_path / "c")
    tower = load_checkpoint(root)[0].get_vision_tower()
    tiles = bench.prepare([item.image for item in items], "demo-llava").tiles
    torch.testing.assert_close(tower(tiles), model.tower(tiles)[:, 1:], rtol=0, atol=1e-4)
    gains = [layer.layer_norm1.weight for layer in tower.vision_tower.encoder.layers]
    before = [layer.layer_norm1.weight for layer in model.vision.encoder.layers]
    assert [int(((ours / theirs) > 60).sum()) for ours, theirs in zip(gains, before, strict=True)] == [4] * 5


@pytest.mark.parametrize(
    ("points", "gain", "outliers", "expected"),
    [
        ({}, 1.0, False, True),
        ({"graph": -1.2}, 1.0, False, False),
        ({"fixed-plain": -9.0}, 5.1, True, True),
        ({"fixed-plain": -4.0}, 5.1, True, False),
        ({"fixed-plain": -9.0}, 4.9, True, False),
        ({"fixed-plain": -9.0, "token-smoothed": -1.5}, 9.0, True, False),
    ],
)
def test_limits_decide_the_exit_code(
    parts: Any, points: dict[str, float], gain: float, outliers: bool, expected: bool
) -> None:
    bench = parts[0]
    row: dict[str, Any] = {name: {"against_fp32_points": {"points": 0.0}} for name in (*bench.KINDS, bench.GRAPH)}
    for name, lost in points.items():
        row[name] = {"against_fp32_points": {"points": lost}}
    assert bench.passed(row | {"token_gain": 50.0, "fixed_gain": gain}, outliers) is expected
