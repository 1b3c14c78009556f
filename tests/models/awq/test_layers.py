"""How the search sees a decoder layer, against transformers' own models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.awq import LINEARS, LayerBatch, run_layer
from models.awq.layers import TOKENS_AT_ONCE, run_attention, scale_groups, watch
from runtime.errors import ExportError
from tests.models.awq.tiny_layers import batches, decoder, prompts


class OldLayer(nn.Module):
    """A layer as transformers 4 has it: the result is the first of a tuple."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer, self.self_attn = layer, layer.self_attn

    def forward(self, hidden: Tensor, **arguments: Any) -> tuple[Tensor, None]:
        return self.layer(hidden, **arguments), None


def states_of(model: Any, embeds: Tensor) -> tuple[Tensor, ...]:
    """transformers' own hidden states: the inputs of the layers, the last one normed."""
    return model.model(inputs_embeds=embeds, output_hidden_states=True).hidden_states


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_a_layer_gives_what_the_whole_model_does(family: str, attention: str) -> None:
    model = decoder(family, layers=2)
    model.set_attn_implementation(attention)
    embeds = prompts(64)[0]
    ours = run_layer(model.model.layers[0], batches(model, [embeds])[0])
    torch.testing.assert_close(ours, states_of(model, embeds)[1], atol=1e-5, rtol=1e-5)


def test_a_layer_with_a_window_keeps_it() -> None:
    model = decoder("qwen2", layers=2, use_sliding_window=True, sliding_window=4, max_window_layers=0)
    embeds = prompts(64)[0]
    ours = run_layer(model.model.layers[0], batches(model, [embeds])[0])
    torch.testing.assert_close(ours, states_of(model, embeds)[1], atol=1e-5, rtol=1e-5)
    model.model.layers[0].self_attn.sliding_window = None
    assert not torch.allclose(run_layer(model.model.layers[0], batches(model, [embeds])[0]), ours, atol=1e-3)


def test_a_mask_that_is_given_is_used() -> None:
    model = decoder("llama", layers=2)
    embeds = prompts(64)[0]
    batch = batches(model, [embeds])[0]
    mask = torch.zeros(1, 1, 17, 17).masked_fill_(torch.ones(17, 17).triu(1).bool(), -1e9)
    mask[..., 0] = -1e9
    mask[..., 0, 0] = 0
    masked = run_layer(model.model.layers[0], LayerBatch(embeds, batch.position_embeddings, mask))
    plain = run_layer(model.model.layers[0], batch)
    torch.testing.assert_close(masked[:, 0], plain[:, 0], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(masked[:, 1:], plain[:, 1:], atol=1e-3)


def test_every_item_of_a_batch_comes_back_from_layers_of_either_transformers() -> None:
    """The published code takes the first of what a layer gives: with a bare tensor, the first item of the batch."""
    model = decoder("qwen2")
    layer, batch = model.model.layers[0], batches(model, prompts(64))[0]
    bare = run_layer(layer, batch)
    assert bare.shape == batch.hidden.shape == (2, 17, 64)
    assert torch.equal(run_layer(OldLayer(layer), batch), bare)


def test_linears_are_watched_and_left_as_they_were() -> None:
    model = decoder("llama")
    layer, given = model.model.layers[0], batches(model, prompts(64))
    seen = watch(layer, given)
    assert not any(module._forward_pre_hooks for module in layer.modules())
    for name in LINEARS:
        caught: list[Tensor] = []
        hook = layer.get_submodule(name).register_forward_pre_hook(lambda _, x, kept=caught: kept.append(x[0]))
        for batch in given:
            run_layer(layer, batch)
        hook.remove()
        assert [len(item) for item in seen.of(name)] == [34, 9]
        assert all(torch.equal(a, b.flatten(0, 1)) for a, b in zip(seen.of(name), caught, strict=True)), name


def test_chunks_are_all_tokens_with_their_weights() -> None:
    model = decoder("qwen2")
    seen = watch(model.model.layers[0], batches(model, prompts(64, ((3, 200), (1, 7)))), relative=True)
    chunks = list(seen.chunks("mlp.up_proj"))
    assert [len(x) for x, _ in chunks] == [TOKENS_AT_ONCE, 600 - TOKENS_AT_ONCE, 7]
    assert torch.equal(torch.cat([x for x, _ in chunks]), torch.cat(seen.of("mlp.gate_proj")))
    assert torch.equal(torch.cat([w for _, w in chunks]), torch.cat([item.flatten() for item in seen.weights]))
    assert seen.tokens == 607


@pytest.mark.parametrize(("tokens", "stride"), [(1000, 1), (43, 1), (42, 1), (21, 2), (10, 4)])
def test_sampling_takes_every_jth_token_across_batches(tokens: int, stride: int) -> None:
    model = decoder("qwen2")
    seen = watch(model.model.layers[0], batches(model, prompts(64)))
    assert torch.equal(seen.sampled("mlp.down_proj", tokens), torch.cat(seen.of("mlp.down_proj"))[::stride])


def test_attention_runs_on_other_weights_without_touching_its_own() -> None:
    model = decoder("qwen2")
    layer, given = model.model.layers[0], batches(model, prompts(64))
    seen = watch(layer, given)
    normed = seen.inputs["self_attn.q_proj"][0]
    own = run_attention(layer, normed, given[0], {})
    after = run_layer(layer, given[0])
    assert torch.equal(own, layer.self_attn(normed, given[0].position_embeddings, None)[0])
    moved = run_attention(layer, normed, given[0], {"q_proj.weight": torch.zeros(64, 64)})
    assert not torch.allclose(moved, own, atol=1e-3)
    assert torch.equal(run_layer(layer, given[0]), after)


def test_values_scale_the_output_projection_only_where_shapes_are_equal() -> None:
    assert [group.previous for group in scale_groups(decoder("llama", kv_heads=4).model.layers[0])] == [
        "input_layernorm", "self_attn.v_proj", "post_attention_layernorm", "mlp.up_proj",
    ]  # fmt: skip
    grouped = scale_groups(decoder("llama", kv_heads=2).model.layers[0])
    assert [group.linears for group in grouped] == [LINEARS[:3], LINEARS[4:6], LINEARS[6:]]


def test_other_layers_are_refused_by_their_type() -> None:
    with pytest.raises(ExportError, match="Linear.*Llama and Qwen2"):
        scale_groups(nn.Linear(2, 2))
