"""Scales change how weights round, never what a layer computes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from models.awq import AwqSettings, ClipChoice, LayerSearch, ScaleChoice, apply_search, search_layer
from models.awq.apply import clamp_groups, scaled_weight
from models.awq.layers import scale_groups
from tests.models.awq.tiny_layers import batches, decoder, prompts


def random_scales(layer: nn.Module, linear: str, generator: torch.Generator) -> Tensor:
    return torch.exp(torch.randn(layer.get_submodule(linear).weight.shape[1], generator=generator))


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(["qwen2", "llama"]),
    st.sampled_from([(2, 1), (2, 2), (4, 1), (4, 2), (4, 4)]),
    st.sampled_from([32, 64, 96]),
    st.integers(9, 120),
    st.booleans(),
    st.integers(0, 1000),
)
def test_scales_without_rounding_leave_the_logits(
    family: str, heads: tuple[int, int], hidden: int, ffn: int, bias: bool, seed: int
) -> None:
    model = decoder(family, hidden=hidden, heads=heads[0], kv_heads=heads[1], ffn=ffn, layers=2, seed=seed, bias=bias)
    embeds, generator = prompts(hidden, ((2, 11),))[0], torch.Generator().manual_seed(seed)
    before = model(inputs_embeds=embeds).logits
    for layer in model.model.layers:
        scales = [
            ScaleChoice(group.previous, group.linears, random_scales(layer, group.linears[0], generator), 0.5, (1.0,))
            for group in scale_groups(layer)
        ]
        old = {name: layer.get_submodule(name).weight.clone() for choice in scales for name in choice.linears}
        apply_search(layer, LayerSearch(scales))
        assert not any(torch.equal(layer.get_submodule(name).weight, weight) for name, weight in old.items())
    assert (model(inputs_embeds=embeds).logits - before).abs().max() < 1e-4


class Pair(nn.Module):
    """A linear whose last four outputs feed another: the first eight go elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 12), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.a(x)
        return y[..., :8], self.b(y[..., 8:])


def test_rows_and_biases_that_feed_nothing_scaled_stay() -> None:
    torch.manual_seed(0)
    pair, x = Pair(), torch.randn(5, 6)
    other, fed = pair(x)
    scales = torch.tensor([0.1, 2.0, 3.0, 40.0])
    apply_search(pair, LayerSearch([ScaleChoice("a", ("b",), scales, 0.5, (1.0,))]))
    assert torch.equal(pair(x)[0], other)
    torch.testing.assert_close(pair(x)[1], fed, atol=1e-5, rtol=1e-5)
    assert pair.a.bias is not None


def test_a_norm_with_a_bias_gives_both() -> None:
    norm, linear = nn.LayerNorm(8), nn.Linear(8, 3)
    nn.init.normal_(norm.bias)
    module = nn.Sequential()
    module.add_module("norm", norm)
    module.add_module("linear", linear)
    x = torch.randn(4, 8)
    before = module(x)
    apply_search(module, LayerSearch([ScaleChoice("norm", ("linear",), torch.rand(8) + 0.1, 0.5, (1.0,))]))
    torch.testing.assert_close(module(x), before, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_the_clips_bound_the_scaled_weights_group_by_group(family: str) -> None:
    model = decoder(family, kv_heads=4)
    layer = model.model.layers[0]
    search = search_layer(layer, batches(model, prompts(64)), AwqSettings.published(32))
    unscaled = {clip.linear: layer.get_submodule(clip.linear).weight.clone() for clip in search.clips}
    apply_search(layer, search)
    clipped = 0
    for clip in search.clips:
        weight = layer.get_submodule(clip.linear).weight
        groups = weight.view(len(weight), -1, 32)
        assert (groups.abs().amax(2) <= clip.maxima).all()
        expected = scaled_weight(clip.linear, unscaled[clip.linear], search.scales).view_as(groups)
        inside = expected.abs() <= clip.maxima[..., None]
        assert torch.equal(groups[inside], expected[inside])
        clipped += int((~inside).sum())
    assert clipped > 0


def test_clamping_bounds_each_group_by_its_own_maximum() -> None:
    weight = torch.tensor([[1.0, -3.0, 5.0, -7.0]])
    assert clamp_groups(weight, torch.tensor([[2.0, 6.0]])).tolist() == [[1.0, -2.0, 5.0, -6.0]]


def test_half_layers_stay_half() -> None:
    model = decoder("qwen2").half()
    layer = model.model.layers[0]
    clip = ClipChoice("mlp.up_proj", torch.full((96, 2), 0.125))
    apply_search(
        layer,
        LayerSearch([ScaleChoice("mlp.up_proj", ("mlp.down_proj",), torch.full((96,), 2.0), 0.5, (1.0,))], [clip]),
    )
    assert {parameter.dtype for parameter in layer.parameters()} == {torch.float16}
    assert layer.mlp.up_proj.weight.abs().max() <= 0.125
