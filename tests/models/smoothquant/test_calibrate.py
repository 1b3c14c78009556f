"""Calibration sees every tile of every picture and video, however they are batched."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.s2_tower import build_vila_vision_tower
from models.smoothquant import (
    ActivationMeter,
    calibrate_layers,
    calibrate_tower,
    calibration_tiles,
    feature_error,
    linear_name,
    measure_activations,
    w8a8_tower,
)
from models.vision_scales import LINEARS
from runtime.errors import InputError
from tests.models.tiny import write_nvila


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def recorded(tower: Any, tiles: Tensor) -> dict[str, np.ndarray]:
    """The same maxima from all inputs kept whole, in float64."""
    inputs: dict[str, list[Tensor]] = {}
    handles = []
    for name, module in tower.vision_tower.named_modules():
        if isinstance(module, nn.Linear) and ".layers." in name:
            keep = inputs.setdefault(name, [])
            handles.append(module.register_forward_hook(lambda m, args, out, keep=keep: keep.append(args[0])))
    tower(tiles)
    for handle in handles:
        handle.remove()
    return {
        f"vision_tower.vision_model.{name}": torch.cat(seen).double().abs().amax((0, 1)).numpy()
        for name, seen in inputs.items()
        if seen
    }


@pytest.mark.parametrize("kind", ["llava", "nvila"])
def test_maxima_are_those_of_all_inputs_under_the_published_names(loaded: Any, kind: str) -> None:
    tower, tiles = loaded(kind).get_vision_tower(), random(6, 3, 28, 28)
    expected = recorded(tower, tiles)
    assert "vision_tower.vision_model.encoder.layers.0.self_attn.q_proj" in expected
    assert len(expected) == 12, "the third layer is not computed"
    whole = measure_activations(tower, [tiles])
    last = tiles[4:] if kind == "nvila" else [tiles[4], tiles[5]]  # dynamic S² takes no lists
    split = measure_activations(tower, [tiles[:1], tiles[1:4], last])
    layerwise = calibrate_tower(tower, tiles).scales
    for scales in (whole, split, layerwise):
        assert scales.tiles == 6
        assert scales.maxima.keys() == expected.keys() == scales.weight_maxima.keys()
        for name, values in expected.items():
            np.testing.assert_allclose(scales.maxima[name], values, rtol=1e-5, atol=1e-6)
    weight = tower.vision_tower.encoder.layers[1].mlp.fc2.weight
    np.testing.assert_array_equal(whole.weight_maxima[linear_name(1, "mlp.fc2")], weight.abs().amax(0))


def test_pictures_and_videos_are_joined_tile_by_tile() -> None:
    one, tiled = random(3, 4, 4), random(5, 3, 4, 4, seed=1)
    first, second = random(8, 3, 4, 4, seed=2), random(2, 6, 3, 4, 4, seed=3)
    found = calibration_tiles({"image": [one, tiled], "video": [first, second]})
    torch.testing.assert_close(found, torch.cat([one[None], tiled, first, second.flatten(0, 1)]))
    assert calibration_tiles({"video": [first, first]}).shape == (16, 3, 4, 4)
    assert calibration_tiles({"image": [one]}).shape == (1, 3, 4, 4)


@pytest.mark.parametrize(
    ("media", "reason"),
    [
        ({}, "no calibration tiles"),
        ({"image": [], "video": []}, "no calibration tiles"),
        ({"image": [torch.zeros(0, 3, 4, 4)]}, "no calibration tiles"),
        ({"image": [torch.zeros(4, 4)]}, "image 0 has shape"),
        ({"video": [torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4, 4)]}, "video 1 has shape"),
        ({"image": [torch.zeros(3, 4, 4)], "video": [torch.zeros(1, 3, 8, 8)]}, "different shapes"),
    ],
)
def test_media_without_usable_tiles_is_refused(media: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        calibration_tiles(media)


def test_nothing_to_measure_is_refused(loaded: Any) -> None:
    with pytest.raises(InputError):
        measure_activations(loaded("llava").get_vision_tower(), [])
    with pytest.raises(InputError):
        calibrate_layers([], [])


def test_alpha_with_the_smallest_feature_error_is_chosen(loaded: Any) -> None:
    tower, tiles = loaded("nvila").get_vision_tower(), random(4, 3, 28, 28)
    alphas = (0.0, 0.3, 0.6, 1.0)
    found = calibrate_tower(tower, tiles, alphas=alphas)
    expected = tower(tiles)
    errors = {
        alpha: feature_error([w8a8_tower(tower, found.scales, alpha=alpha, static=True)(tiles)], [expected])
        for alpha in alphas
    }
    assert found.errors == pytest.approx(errors, rel=0.05)
    assert found.scales.alpha == min(found.errors, key=lambda alpha: found.errors[alpha])
    fixed = calibrate_tower(tower, tiles, alphas=(0.25,))
    assert (fixed.scales.alpha, fixed.errors) == (0.25, {})


def test_error_leaves_out_what_does_not_reach_the_features(loaded: Any) -> None:
    tower, tiles = loaded("llava").get_vision_tower(), random(3, 3, 28, 28)
    found = calibrate_tower(tower, tiles, alphas=(0.3, 0.5))
    int8 = w8a8_tower(tower, found.scales, alpha=0.3, static=True)
    assert found.errors[0.3] == pytest.approx(feature_error([int8(tiles)], [tower(tiles)]), rel=0.05)


def test_layers_are_asked_for_one_at_a_time(loaded: Any) -> None:
    tower, tiles = loaded("nvila").get_vision_tower(), random(2, 3, 28, 28)
    events: list[str] = []

    def layers() -> Any:
        for index in range(2):
            events.append(f"load {index}")
            yield tower.vision_tower.encoder.layers[index]
            events.append(f"drop {index}")

    calibrate_layers(
        [tower._embed(tiles)], layers(), alphas=(0.3,), progress=lambda done: events.append(f"done {done}")
    )
    assert events == ["load 0", "done 1", "drop 0", "load 1", "done 2", "drop 1"]


def test_static_s2_tower_is_measured_through_its_own_cutting(tmp_path: Any) -> None:
    extra = {"dynamic_s2": False, "s2": True}
    root = write_nvila(tmp_path / "s2", scales=(28, 56), aspect="resize", extra=extra)
    config = type("C", (), {"s2": True, "s2_scales": "28,56", "mm_vision_select_layer": -2, "mm_hidden_size": 0})()
    tower = build_vila_vision_tower(root / "vision_tower", config)
    pictures = random(2, 3, 56, 56)
    scales = measure_activations(tower, [pictures])
    assert scales.layers == 2 and set(scales.maxima) == {linear_name(i, n) for i in range(2) for n in LINEARS}
    int8 = w8a8_tower(tower, scales, static=True)
    assert feature_error([int8(pictures)], [tower(pictures)]) < 0.06


def test_meter_leaves_no_hooks_behind() -> None:
    module = nn.Linear(3, 2)
    with ActivationMeter({"a": module, "never": nn.Linear(1, 1)}) as meter:
        module(torch.tensor([[1.0, -5.0, 0.0]]))
        module(torch.tensor([2.0, 1.0, 0.0]))
        module(torch.zeros(0, 3))
    module(torch.full((1, 3), 100.0))
    assert list(meter.maxima) == ["a"]
    torch.testing.assert_close(meter.maxima["a"], torch.tensor([2.0, 5.0, 0.0]))
