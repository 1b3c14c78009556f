"""Whole decoders: order of the steps, names, and that it pays."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from kernels.packing import quantize_nearest
from models.awq import (
    LINEARS,
    AwqSettings,
    LayerSearch,
    apply_search,
    quantize_layer,
    quantize_model,
    run_layer,
    search_layer,
)
from tests.models.awq.tiny_layers import batches, decoder, prompts


def loss(model: Any, weights: dict[str, Any], embeds: torch.Tensor, expected: torch.Tensor) -> float:
    """Mean squared error of the logits with these integers."""
    twin = copy.deepcopy(model)
    for name, weight in weights.items():
        twin.get_submodule(name).weight.copy_(torch.from_numpy(weight.dequantize()))
    return float((twin(inputs_embeds=embeds).logits - expected).square().mean())


@pytest.mark.parametrize("family", ["qwen2", "llama"])
@pytest.mark.parametrize("settings", [AwqSettings(32), AwqSettings.published(32)], ids=["ours", "published"])
def test_a_decoder_loses_less_than_by_round_to_nearest_on_other_prompts(family: str, settings: AwqSettings) -> None:
    model = decoder(family, layers=3, ffn=128)
    embeds = prompts(64, ((4, 30),), seed=9)[0]
    expected = model(inputs_embeds=embeds).logits
    nearest = {
        name: quantize_nearest(module.weight.numpy(), 32)
        for name, module in model.named_modules()
        if name.endswith(LINEARS)
    }
    twin = copy.deepcopy(model)
    found = quantize_model(twin, prompts(64, ((8, 40), (3, 25)), seed=9), settings)
    assert found.keys() == nearest.keys()
    assert loss(twin, found, embeds, expected) < 0.9 * loss(model, nearest, embeds, expected)


def test_layers_are_calibrated_on_the_original_layers_before_them() -> None:
    model = decoder("qwen2", layers=2)
    original, found = copy.deepcopy(model), []
    quantize_model(model, prompts(64), AwqSettings(32), lambda done, count, search: found.append((done, count, search)))
    assert [(done, count) for done, count, _ in found] == [(1, 2), (2, 2)]
    first = batches(original, prompts(64))
    second = [replace(batch, hidden=run_layer(original.model.layers[0], batch)) for batch in first]
    for given, layer, (_, _, search) in zip((first, second), original.model.layers, found, strict=True):
        expected = search_layer(layer, given, AwqSettings(32))
        assert [choice.ratio for choice in search.scales] == [choice.ratio for choice in expected.scales]
        assert all(torch.equal(a.scales, b.scales) for a, b in zip(search.scales, expected.scales, strict=True))


def test_without_compensation_integers_are_the_applied_weights_rounded() -> None:
    model = decoder("llama", kv_heads=4)
    found = quantize_model(model, prompts(64), AwqSettings.published(32))
    for name, weight in found.items():
        assert weight.equals(quantize_nearest(model.get_submodule(name).weight.numpy(), 32)), name


def test_with_calibration_inputs_the_layer_is_left_and_its_own_output_is_nearer() -> None:
    model = decoder("qwen2")
    layer, given = model.model.layers[0], batches(model, prompts(64, ((4, 40),)))
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    expected, errors = run_layer(layer, given[0]), []
    for calibration in (None, given):
        weights = quantize_layer(layer, 32, calibration)
        assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
        twin = copy.deepcopy(layer)
        for name, weight in weights.items():
            twin.get_submodule(name).weight.copy_(torch.from_numpy(weight.dequantize()))
        errors.append(float((run_layer(twin, given[0]) - expected).square().mean()))
    assert errors[1] < 0.8 * errors[0]


def test_a_search_without_clips_moves_scales_alone() -> None:
    model = decoder("qwen2")
    given = batches(model, prompts(64))
    search = search_layer(model.model.layers[0], given, replace(AwqSettings.published(32), clip=False))
    assert search.clips == []
    before = run_layer(model.model.layers[0], given[0])
    apply_search(model.model.layers[0], search)
    torch.testing.assert_close(run_layer(model.model.layers[0], given[0]), before, atol=1e-4, rtol=1e-4)


def test_an_empty_search_changes_nothing() -> None:
    model = decoder("qwen2")
    before = [parameter.clone() for parameter in model.parameters()]
    apply_search(model.model.layers[0], LayerSearch([]))
    assert all(np.array_equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
