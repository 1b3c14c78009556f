"""The int8 towers compute what the formulas say: float64 and integers written out here are the judge."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import CLIPVisionConfig, SiglipVisionConfig
from transformers.models.clip.modeling_clip import CLIPEncoderLayer
from transformers.models.siglip.modeling_siglip import SiglipEncoderLayer

from models.smoothquant import (
    W8A8Linear,
    calibrate_tower,
    feature_error,
    measure_activations,
    w8a8_layer,
    w8a8_tower,
)
from models.smoothquant.w8a8 import MAX_IN_FEATURES, _integer_product
from runtime.errors import ExportError

F64 = np.ndarray[Any, np.dtype[np.float64]]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def linear(inputs: int, outputs: int, *, bias: bool = True, seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(inputs, outputs, bias=bias).requires_grad_(False)


def int8_product(x: Any, module: nn.Linear) -> F64:
    """W8A8 in numpy: f32 rounding to int8 by row on both sides, int64 sums, float64 afterwards."""
    x, weight = np.asarray(x, np.float32), module.weight.numpy()
    s_w = np.maximum(np.abs(weight).max(1), np.float32(1e-5)) / np.float32(127)
    s_x = np.maximum(np.abs(x).max(-1, keepdims=True), np.float32(1e-5)) / np.float32(127)
    q_w, q_x = np.rint(weight / s_w[:, None]).astype(np.int64), np.rint(x / s_x).astype(np.int64)
    assert np.abs(q_w).max() <= 127 and np.abs(q_x).max() <= 127
    y = (q_x @ q_w.T).astype(np.float64) * s_x * s_w
    return y if module.bias is None else y + module.bias.numpy()


@pytest.mark.parametrize("tokens", [1, 7, 33])
def test_behaviour_24_w8a8_linear_with_4304_inputs_is_exact(tokens: int) -> None:
    module, x = linear(4304, 48), random(2, tokens, 4304) * 3
    found = W8A8Linear(module)(x)
    np.testing.assert_allclose(found, int8_product(x, module), rtol=2e-6, atol=2e-6)
    exact = x.double() @ module.weight.double().T + module.bias.double()
    assert feature_error([found], [exact]) < 0.02, "reading past the row's end (no multiple of 64) makes this 0.11"


def test_last_inputs_of_an_odd_row_count_and_nothing_behind_them_does() -> None:
    module, x = linear(4304, 3, bias=False), torch.zeros(2, 4304)
    x[0, 4303], x[1, 4288] = 5.0, -2.0
    found = W8A8Linear(module)(x)
    np.testing.assert_allclose(found, int8_product(x, module), rtol=1e-6)
    assert found.abs().min() > 0


@pytest.fixture(scope="module")
def wide_layer() -> SiglipEncoderLayer:
    """One layer of SigLIP-so400m's own widths."""
    config = SiglipVisionConfig(hidden_size=1152, intermediate_size=4304, num_attention_heads=16)
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    layer = SiglipEncoderLayer(config).requires_grad_(False).eval()
    for norm in (layer.layer_norm1, layer.layer_norm2):
        norm.weight.uniform_(0.5, 1.5)
        norm.bias.normal_(0, 0.1)
    return layer


def float64_layer(layer: SiglipEncoderLayer, x: Tensor) -> F64:
    """A SigLIP layer whose six linear layers are ``int8_product``; norms, attention and GELU in float64."""

    def norm(module: nn.LayerNorm, h: F64) -> F64:
        centred = h - h.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + module.eps)
        return scaled * module.weight.double().numpy() + module.bias.double().numpy()

    hidden = x.double().numpy()
    attention, (batch, tokens, width) = layer.self_attn, x.shape
    normed = norm(layer.layer_norm1, hidden)
    heads = attention.num_heads
    q, k, v = (
        int8_product(normed, module).reshape(batch, tokens, heads, -1).transpose(0, 2, 1, 3)
        for module in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    scores = q @ k.transpose(0, 1, 3, 2) / math.sqrt(width / heads)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = (weights / weights.sum(-1, keepdims=True)) @ v
    hidden = hidden + int8_product(mixed.transpose(0, 2, 1, 3).reshape(batch, tokens, width), attention.out_proj)
    inner = int8_product(norm(layer.layer_norm2, hidden), layer.mlp.fc1)
    gelu = 0.5 * inner * (1 + np.tanh(math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)))
    return hidden + int8_product(gelu, layer.mlp.fc2)


def test_behaviour_24_w8a8_layer_is_near_a_float64_reference(wide_layer: SiglipEncoderLayer) -> None:
    x = random(2, 9, 1152)
    found = w8a8_layer(wide_layer, 0, None)(x, attention_mask=None)
    reference = torch.from_numpy(float64_layer(wide_layer, x))
    # A value on the border between two integers may fall either way in f32: hence not 1e-6.
    assert feature_error([found - x], [reference - x]) < 1e-3
    plain = wide_layer(x, attention_mask=None)
    assert 1e-4 < feature_error([found - x], [plain - x]) < 0.03


def test_norm_keeps_the_variance_of_states_with_a_large_mean(wide_layer: SiglipEncoderLayer) -> None:
    x = random(1, 4, 1152) + 3000.0  # mean² is 10^7 variances: E[x²] - E[x]² has no digit left in f32
    int8 = w8a8_layer(wide_layer, 0, None)
    wide = x.double()
    centred = wide - wide.mean(-1, keepdim=True)
    expected = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    expected = expected * wide_layer.layer_norm1.weight.double() + wide_layer.layer_norm1.bias.double()
    assert feature_error([int8.layer_norm1(x)], [expected]) < 1e-3
    one_pass = x.square().mean(-1, keepdim=True) - x.mean(-1, keepdim=True).square()
    assert (one_pass - 1).abs().max() > 0.5


def test_tokens_of_zeros_give_the_bias() -> None:
    module, x = linear(24, 5), random(3, 24)
    x[1] = 0
    integers, scale = W8A8Linear(module)._quantize(x)
    assert (integers[1] == 0).all() and scale.min() > 0, "0 / 0 cast to int32 would look right by chance"
    found = W8A8Linear(module)(x)
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found[1], module.bias)
    empty_rows = linear(24, 5, bias=False)
    empty_rows.weight[2] = 0
    assert (W8A8Linear(empty_rows)(x)[:, 2] == 0).all()


@given(
    inputs=st.integers(1, 2100),
    outputs=st.integers(1, 9),
    leading=st.lists(st.integers(0, 3), max_size=3),
    seed=st.integers(0, 99),
)
def test_any_shape_equals_integers_summed_in_int64(inputs: int, outputs: int, leading: list[int], seed: int) -> None:
    module, x = linear(inputs, outputs, bias=False, seed=seed), random(*leading, inputs, seed=seed)
    found = W8A8Linear(module)(x)
    assert found.shape == (*leading, outputs)
    if x.numel():
        np.testing.assert_allclose(found, int8_product(x, module), rtol=2e-6, atol=1e-6)


def test_sums_beyond_24_bits_stay_exact() -> None:
    source = np.random.default_rng(0)
    x, weight = source.integers(90, 128, (7, 8300)), source.integers(90, 128, (5, 8300))
    found = _integer_product(torch.from_numpy(x).float(), torch.from_numpy(weight.astype(np.int8)))
    assert found.dtype == torch.int32 and int(found.min()) > 2**24
    np.testing.assert_array_equal(found, x @ weight.T)


def test_row_that_could_leave_int32_is_refused() -> None:
    assert MAX_IN_FEATURES * 128 * 127 < 2**31 <= (MAX_IN_FEATURES + 1) * 128 * 127
    with pytest.raises(ExportError, match="int32"):
        W8A8Linear(nn.Linear(MAX_IN_FEATURES + 1, 1, device="meta"))


def test_static_scale_saturates_like_quantize_linear() -> None:
    module = nn.Linear(4, 4, bias=False).requires_grad_(False)
    module.weight.copy_(torch.eye(4))
    x = torch.tensor([[0.5, 1.5, -1000.0, 1000.0]])
    found = W8A8Linear(module, 1.0)(x)
    torch.testing.assert_close(found, torch.tensor([[0.0, 2.0, -128.0, 127.0]]))  # half to even


def test_half_inputs_give_half_outputs() -> None:
    module, x = linear(30, 4), random(2, 30).half()
    found = W8A8Linear(module)(x)
    assert found.dtype == torch.float16
    torch.testing.assert_close(found, W8A8Linear(module)(x.float()).half())


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("kind", ["llava", "nvila"])
def test_towers_of_both_families_stay_near_fp32(loaded: Any, kind: str, static: bool) -> None:
    tower = loaded(kind).get_vision_tower()
    tiles = random(5, 3, 28, 28)
    scales = calibrate_tower(tower, tiles).scales
    before = {name: value.clone() for name, value in tower.state_dict().items()}
    int8 = w8a8_tower(tower, scales, static=static)
    expected = tower(tiles)
    error = feature_error([int8(tiles)], [expected])
    assert 1e-4 < error < (0.06 if static else 0.05)
    assert int8(tiles).shape == expected.shape
    assert all(torch.equal(value, before[name]) for name, value in tower.state_dict().items()), "the original stays"
    replaced = [module for module in int8.modules() if isinstance(module, W8A8Linear)]
    assert len(replaced) == 6 * scales.layers == 12, "two of three layers are computed"
    assert all((module.input_scale is not None) == static for module in replaced)


def test_tower_without_scales_is_quantised_as_it_stands(loaded: Any) -> None:
    tower = loaded("llava").get_vision_tower()
    tiles = random(2, 3, 28, 28)
    plain = w8a8_tower(tower)
    assert feature_error([plain(tiles)], [tower(tiles)]) < 0.05
    scales = measure_activations(tower, [tiles])
    unsmoothed = w8a8_tower(tower, scales, smooth=False)
    torch.testing.assert_close(unsmoothed(tiles), plain(tiles))


def test_scales_of_another_tower_are_refused(loaded: Any) -> None:
    clip, siglip = loaded("llava").get_vision_tower(), loaded("nvila").get_vision_tower()
    scales = measure_activations(clip, [random(1, 3, 28, 28)])
    with pytest.raises(ExportError, match=r"hold 16 channels for .*layers\.0\.self_attn\.q_proj, which takes 18"):
        w8a8_tower(siglip, scales)


def test_clip_layer_with_quick_gelu_and_odd_widths() -> None:
    config = CLIPVisionConfig(hidden_size=33, intermediate_size=71, num_attention_heads=3)
    config._attn_implementation = "sdpa"
    torch.manual_seed(1)
    layer = CLIPEncoderLayer(config).requires_grad_(False).eval()
    x = random(3, 11, 33)
    plain = layer(x, attention_mask=None)
    assert feature_error([w8a8_layer(layer, 0, None)(x, attention_mask=None) - x], [plain - x]) < 0.04
