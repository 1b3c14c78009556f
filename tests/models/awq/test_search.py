"""The searches against one written out plainly in float64 from the published description."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from models.awq import AwqSettings, LayerBatch, LayerSearch, run_layer, search_layer
from runtime.errors import ExportError
from tests.models.awq.tiny_layers import batches, decoder, prompts

GROUP = 32
Weights = dict[str, Tensor]


def quantized(weight: Tensor) -> Tensor:
    """Group-wise uint4 as the project rounds: 0 is in the range, the scale is an f16."""
    grouped = weight.reshape(len(weight), -1, GROUP)
    low, high = grouped.amin(2, keepdim=True).clamp(max=0), grouped.amax(2, keepdim=True).clamp(min=0)
    scale = ((high - low).clamp(min=1e-5) / 15).half().double()
    zero = torch.round(-low / scale).clamp(0, 15)
    return ((torch.clamp(torch.round(grouped / scale) + zero, 0, 15) - zero) * scale).reshape(weight.shape)


def linear(weights: Weights, name: str, x: Tensor) -> Tensor:
    bias = weights.get(f"{name}.bias")
    return x @ weights[f"{name}.weight"].T + (0 if bias is None else bias)


def norm(weights: Weights, name: str, x: Tensor, eps: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weights[f"{name}.weight"]


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    left, right = x.chunk(2, -1)
    return x * cos + torch.cat([-right, left], -1) * sin


def before_output(weights: Weights, x: Tensor, config: Any, rope: tuple[Tensor, Tensor]) -> Tensor:
    """What the output projection gets, [n, heads · head_dim], for one sequence [n, D]."""
    width, shared = config.hidden_size // config.num_attention_heads, config.num_attention_heads
    q, k, v = (linear(weights, f"self_attn.{name}_proj", x).view(len(x), -1, width).transpose(0, 1) for name in "qkv")
    shared //= len(k)
    q, k = turned(q, *rope), turned(k, *rope)
    k, v = k.repeat_interleave(shared, 0), v.repeat_interleave(shared, 0)
    scores = q @ k.transpose(1, 2) / width**0.5
    scores = scores.masked_fill(torch.ones(len(x), len(x)).triu(1).bool(), float("-inf"))
    return (scores.softmax(-1) @ v).transpose(0, 1).reshape(len(x), -1)


def mlp(weights: Weights, x: Tensor) -> Tensor:
    return functional.silu(linear(weights, "mlp.gate_proj", x)) * linear(weights, "mlp.up_proj", x)


class Plain:
    """The published search in float64, sequence by sequence, nothing saved or shared."""

    def __init__(self, layer: Any, config: Any, given: list[LayerBatch]) -> None:
        self.weights = {name: value.double() for name, value in layer.state_dict().items()}
        self.config, eps = config, config.rms_norm_eps
        self.seen: dict[str, list[Tensor]] = {"attention": [], "output": [], "mlp": [], "down": []}
        self.ropes = []
        for batch in given:
            for hidden in batch.hidden.double():
                rope = tuple(part[0].double() for part in batch.position_embeddings)
                x = norm(self.weights, "input_layernorm", hidden, eps)
                inner = before_output(self.weights, x, config, rope)
                after = hidden + linear(self.weights, "self_attn.o_proj", inner)
                y = norm(self.weights, "post_attention_layernorm", after, eps)
                self.ropes.append(rope)
                for name, value in zip(self.seen, (x, inner, y, mlp(self.weights, y)), strict=True):
                    self.seen[name].append(value)

    def attention(self, weights: Weights) -> Tensor:
        found = [
            linear(weights, "self_attn.o_proj", before_output(weights, x, self.config, rope))
            for x, rope in zip(self.seen["attention"], self.ropes, strict=True)
        ]
        return torch.cat(found)

    def on(self, seen: str, name: str) -> Callable[[Weights], Tensor]:
        return lambda weights: linear(weights, name, torch.cat(self.seen[seen]))

    def best(self, seen: str, names: tuple[str, ...], compute: Callable[[Weights], Tensor]) -> tuple[float, Tensor]:
        size = torch.cat(self.seen[seen]).abs().mean(0)
        expected, least, best = compute(self.weights), float("inf"), None
        for ratio in (step / 20 for step in range(20)):
            scales = size.pow(ratio).clamp(min=1e-4)
            scales = scales / (scales.max() * scales.min()).sqrt()
            changed = {f"{n}.weight": quantized(self.weights[f"{n}.weight"] * scales) / scales for n in names}
            loss = float((compute(self.weights | changed) - expected).square().mean())
            if loss < least:
                least, best = loss, (ratio, scales)
        assert best is not None
        return best

    def groups(self) -> dict[str, tuple[float, Tensor]]:
        """(ratio, scales) by the module before, in the published order."""
        attention = tuple(f"self_attn.{name}_proj" for name in "qkv")
        found = {"input_layernorm": self.best("attention", attention, self.attention)}
        if self.weights["self_attn.v_proj.weight"].shape == self.weights["self_attn.o_proj.weight"].shape:
            name = "self_attn.o_proj"
            found["self_attn.v_proj"] = self.best("output", (name,), self.on("output", name))
        whole = lambda w: linear(w, "mlp.down_proj", mlp(w, torch.cat(self.seen["mlp"])))  # noqa: E731
        found["post_attention_layernorm"] = self.best("mlp", ("mlp.gate_proj", "mlp.up_proj"), whole)
        name = "mlp.down_proj"
        return found | {"mlp.up_proj": self.best("down", (name,), self.on("down", name))}

    def clips(self, groups: dict[str, tuple[float, Tensor]], sampled: int) -> dict[str, Tensor]:
        """Maxima by linear on the scaled weights."""
        normed = ("mlp", "post_attention_layernorm")
        feeds = {
            "self_attn.v_proj": ("attention", "input_layernorm"),
            "self_attn.o_proj": ("output", "self_attn.v_proj"),
            "mlp.gate_proj": normed,
            "mlp.up_proj": normed,
            "mlp.down_proj": ("down", "mlp.up_proj"),
        }
        found = {}
        for name, (seen, before) in feeds.items():
            weight, x = self.weights[f"{name}.weight"], torch.cat(self.seen[seen])
            if before in groups:
                weight, x = weight * groups[before][1], x / groups[before][1]
            if name in groups:
                weight = weight / groups[name][1][:, None]
            found[name] = best_maxima(weight, x[:: max(1, len(x) // sampled)])
        return found


def best_maxima(weight: Tensor, x: Tensor) -> Tensor:
    found = torch.zeros(len(weight), weight.shape[1] // GROUP, dtype=torch.float64)
    for group in range(found.shape[1]):
        columns = slice(group * GROUP, (group + 1) * GROUP)
        inputs = x[:, columns]
        for row in range(len(weight)):
            w = weight[row : row + 1, columns]
            least = float("inf")
            for step in range(10):
                top = float(w.abs().max()) * (1 - step / 20)
                error = float(((quantized(w.clamp(-top, top)) - w) @ inputs.T).square().mean())
                if error < least:
                    least, found[row, group] = error, top
    return found


def compared(model: Any, given: list[LayerBatch], settings: AwqSettings) -> LayerSearch:
    layer = model.model.layers[0]
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    ours, plain = search_layer(layer, given, settings), Plain(layer, model.config, given)
    groups = plain.groups()
    assert [(choice.previous, choice.ratio) for choice in ours.scales] == [(n, r) for n, (r, _) in groups.items()]
    for choice in ours.scales:
        torch.testing.assert_close(choice.scales.double(), groups[choice.previous][1], rtol=1e-5, atol=0)
    clips = plain.clips(groups, settings.clip_tokens)
    assert [clip.linear for clip in ours.clips] == list(clips)
    for clip in ours.clips:
        torch.testing.assert_close(clip.maxima.double(), clips[clip.linear], rtol=1e-5, atol=0)
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    assert len({choice.ratio for choice in ours.scales}) > 1, "the example tells ratios apart"
    return ours


def test_behaviour_18_searches_pick_the_published_ratios_and_maxima_on_qwen2_with_grouped_queries() -> None:
    model = decoder("qwen2")
    found = compared(model, batches(model, prompts(64)), AwqSettings.published(GROUP))
    assert "self_attn.v_proj" not in {choice.previous for choice in found.scales}


@pytest.mark.parametrize("kv_heads", [2, 4])
def test_behaviour_18_the_same_on_llama_where_values_scale_the_output_without_grouped_queries(kv_heads: int) -> None:
    model = decoder("llama", kv_heads=kv_heads, seed=3)
    found = compared(model, batches(model, prompts(64, seed=4)), AwqSettings.published(GROUP))
    assert ("self_attn.v_proj" in {choice.previous for choice in found.scales}) is (kv_heads == 4)


@pytest.mark.parametrize("clip_tokens", [16, 512])
def test_behaviour_18_few_tokens_are_all_used_and_many_are_sampled_with_a_stride(clip_tokens: int) -> None:
    """43 tokens: fewer than 512, where the published search fails; and 43 // 16 = 2."""
    model = decoder("qwen2", ffn=64, seed=6)
    settings = replace(AwqSettings.published(GROUP), clip_tokens=clip_tokens)
    compared(model, batches(model, prompts(64, seed=7)), settings)


def test_plain_rounding_is_among_the_candidates_and_losses_are_told() -> None:
    model = decoder("qwen2")
    for settings in (AwqSettings.published(GROUP), AwqSettings(GROUP)):
        for choice in search_layer(model.model.layers[0], batches(model, prompts(64)), settings).scales:
            assert len(choice.losses) == 20
            assert choice.loss == choice.losses[round(choice.ratio * 20)] <= choice.losses[0]


def test_pieces_of_tokens_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    model = decoder("qwen2")
    given = batches(model, prompts(64))
    whole = search_layer(model.model.layers[0], given, AwqSettings(GROUP))
    monkeypatch.setattr("models.awq.layers.TOKENS_AT_ONCE", 5)
    parts = search_layer(model.model.layers[0], given, AwqSettings(GROUP))
    for one, other in zip(whole.scales, parts.scales, strict=True):
        assert one.ratio == other.ratio
        torch.testing.assert_close(torch.tensor(one.losses), torch.tensor(other.losses), rtol=1e-4, atol=0)


def test_relative_errors_count_by_the_size_of_the_state_behind_the_layer() -> None:
    model = decoder("qwen2")
    layer, x = model.model.layers[0], prompts(64, ((1, 12),))
    x[0][0, 0] *= 1000
    given = batches(model, x)
    states = run_layer(layer, given[0])[0].double()
    weights = 1 / states.square().mean(1)
    weights /= weights.mean()
    assert weights[0] < 1e-3 * weights[1:].min(), "the huge token would decide alone"
    found = search_layer(layer, given, AwqSettings(GROUP)).scales[-1]
    plain = Plain(layer, model.config, given)
    weight, seen = plain.weights["mlp.down_proj.weight"], torch.cat(plain.seen["down"])
    error = (seen @ (quantized(weight) - weight).T).square().mean(1)
    assert found.losses[0] == pytest.approx(float((error * weights).mean()), rel=1e-4)
    assert found.losses[0] != pytest.approx(float(error.mean()), rel=0.1)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_half_layers_are_searched_in_f32(attention: str) -> None:
    model = decoder("qwen2")
    model.set_attn_implementation(attention)
    half = copy.deepcopy(model).to(torch.bfloat16)
    embeds = prompts(64)
    ours = search_layer(half.model.layers[0], batches(half, [item.bfloat16() for item in embeds]), AwqSettings(GROUP))
    full = search_layer(model.model.layers[0], batches(model, embeds), AwqSettings(GROUP))
    for one, other in zip(ours.scales, full.scales, strict=True):
        assert one.scales.dtype == torch.float32
        torch.testing.assert_close(torch.tensor(one.losses), torch.tensor(other.losses), rtol=0.25, atol=0)


def test_a_ratio_without_a_finite_loss_is_passed_over() -> None:
    """A channel of 10^6 spans more than f16 scales hold, until its scale brings it down."""
    model = decoder("qwen2")
    layer, x = model.model.layers[0], prompts(64)
    layer.mlp.down_proj.weight[:, 5] *= 1e7
    layer.mlp.up_proj.weight[5] *= 1e-9
    choice = search_layer(layer, batches(model, x), AwqSettings(GROUP)).scales[-1]
    assert choice.losses[0] != choice.losses[0]
    assert choice.ratio > 0
    assert 0 <= choice.loss == choice.losses[round(choice.ratio * 20)]


def test_inputs_that_are_not_finite_are_refused() -> None:
    model = decoder("qwen2")
    x = prompts(64)
    x[0][0, 3] = float("nan")
    with pytest.raises(ExportError, match=r"self_attn.q_proj.*no scale gives a finite error"):
        search_layer(model.model.layers[0], batches(model, x), AwqSettings(GROUP))
