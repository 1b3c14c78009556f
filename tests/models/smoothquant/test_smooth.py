"""Smoothing changes no result in f32, follows the formula, and saves int8 towers from outlier channels."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from models.checkpoint import load_checkpoint
from models.smoothquant import (
    calibrate_tower,
    feature_error,
    linear_name,
    measure_activations,
    smooth_layer,
    smooth_tower,
    w8a8_tower,
)
from models.tiling import picture_tiles
from models.vision_tower import VisionTower
from runtime.errors import ExportError
from runtime.sources.scene_render import render, sample_look
from runtime.sources.scenes import SEEN_PAIRS, sample_scene
from runtime.tiling import TilingSpec, layout_for

DEMO = Path(__file__).resolve().parents[3] / "models" / "demo"


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("kind", ["llava", "nvila"])
def test_features_stay_the_same_in_f32(loaded: Any, kind: str, alpha: float) -> None:
    tower, tiles = loaded(kind).get_vision_tower(), random(4, 3, 28, 28)
    scales = measure_activations(tower, [tiles])
    smoothed = copy.deepcopy(tower)
    smooth_tower(smoothed, scales, alpha)
    fresh = random(3, 3, 28, 28, seed=1)
    torch.testing.assert_close(smoothed(fresh), tower(fresh), rtol=1e-4, atol=1e-5)
    first, before = (t.vision_tower.encoder.layers[0].layer_norm1.weight for t in (smoothed, tower))
    assert not torch.equal(first, before)


def test_norms_are_divided_and_columns_multiplied_by_the_formula(loaded: Any) -> None:
    tower, tiles = loaded("nvila").get_vision_tower(), random(4, 3, 28, 28)
    scales = measure_activations(tower, [tiles])
    before = tower.vision_tower.encoder.layers[1]
    after = copy.deepcopy(before)
    factors = smooth_layer(after, 1, scales, 0.4)
    for norm, names in (("layer_norm1", ["q_proj", "k_proj", "v_proj"]), ("layer_norm2", ["fc1"])):
        old = before.self_attn if norm == "layer_norm1" else before.mlp
        new = after.self_attn if norm == "layer_norm1" else after.mlp
        weights = np.abs(np.concatenate([getattr(old, name).weight.double().numpy() for name in names])).max(0)
        linear = "self_attn.q_proj" if norm == "layer_norm1" else "mlp.fc1"
        expected = scales.maxima[linear_name(1, linear)].astype(np.float64) ** 0.4 / weights**0.6
        np.testing.assert_allclose(factors[norm], expected, rtol=1e-5)
        for part in ("weight", "bias"):
            ours, theirs = getattr(getattr(after, norm), part), getattr(getattr(before, norm), part)
            np.testing.assert_allclose(ours, theirs.numpy() / expected, rtol=1e-5)
        for name in names:
            np.testing.assert_allclose(getattr(new, name).weight, getattr(old, name).weight.numpy() * expected, 1e-5)
    for untouched in ("self_attn.out_proj.weight", "mlp.fc2.weight", "self_attn.q_proj.bias"):
        assert torch.equal(after.get_parameter(untouched), before.get_parameter(untouched))


def test_scales_of_more_layers_than_the_tower_has_are_refused(loaded: Any) -> None:
    tower = loaded("llava").get_vision_tower()
    scales = measure_activations(tower, [random(1, 3, 28, 28)])
    short = copy.deepcopy(tower)
    del short.vision_tower.encoder.layers[1:]
    with pytest.raises(ExportError, match="of 2 layers, the vision tower has 1"):
        smooth_tower(short, scales)


def plant_outliers(tower: VisionTower, factor: float, count: int) -> None:
    """``count`` channels of both norms of every layer times ``factor``, the columns they feed divided by it."""
    generator = torch.Generator().manual_seed(5)
    for layer in tower.vision_tower.encoder.layers:
        attention = layer.self_attn
        fed = {layer.layer_norm1: (attention.q_proj, attention.k_proj, attention.v_proj)}
        fed[layer.layer_norm2] = (layer.mlp.fc1,)
        for norm, linears in fed.items():
            channels = torch.randperm(len(norm.weight), generator=generator)[:count]
            norm.weight[channels] *= factor
            norm.bias[channels] *= factor
            for linear in linears:
                linear.weight[:, channels] /= factor


def scene_tiles(tower: VisionTower, seed: int, count: int) -> Tensor:
    """Rendered scenes as the demo models know them, each as one tile."""
    source = np.random.default_rng(seed)
    spec = TilingSpec("resize", int(tower.config.image_size), 1)
    tiles = []
    for _ in range(count):
        scene = sample_scene(source, 1.0, None, SEEN_PAIRS)
        picture = Image.fromarray(render(scene, sample_look(source), source, 96, 96))
        tiles.append(picture_tiles(picture, layout_for(96, 96, spec), spec, tower.image_processor))
    return torch.cat(tiles)


@pytest.mark.parametrize("name", ["demo-llava", "demo-nvila"])
def test_planted_outliers_ruin_plain_int8_and_smoothing_repairs_it(name: str) -> None:
    tower = load_checkpoint(DEMO / name)[0].get_vision_tower()
    calibration, unseen = scene_tiles(tower, 1, 12), scene_tiles(tower, 2, 12)
    expected = tower(unseen)
    planted = copy.deepcopy(tower)
    plant_outliers(planted, 64.0, 4)
    torch.testing.assert_close(planted(unseen), expected, rtol=0, atol=1e-4)
    scales = calibrate_tower(planted, calibration).scales

    def error(**how: Any) -> float:
        return feature_error([w8a8_tower(planted, **how)(unseen)], [expected])

    plain, smoothed = error(), error(scales=scales)
    assert plain > 0.15, "int8 by token without smoothing"
    assert smoothed < 0.025
    assert plain > 5 * smoothed
    plain, smoothed = error(scales=scales, smooth=False, static=True), error(scales=scales, static=True)
    assert plain > 0.4, "int8 with fixed scales without smoothing"
    assert smoothed < 0.06
    assert plain > 5 * smoothed
