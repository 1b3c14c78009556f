"""Decoder layers of transformers' Llama and Qwen2 as the search sees them: what feeds what, and what each linear sees.

Works with transformers 4 (layers return tuples) and 5 (bare tensors).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer

from runtime.errors import ExportError

LINEARS = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
TOKENS_AT_ONCE = 512
SHARED_INPUT = {
    "self_attn.k_proj": "self_attn.q_proj",
    "self_attn.v_proj": "self_attn.q_proj",
    "mlp.up_proj": "mlp.gate_proj",
}


@dataclass
class LayerBatch:
    """The inputs of one decoder layer: hidden [B, n, D], rotary (cos, sin) [B or 1, n, head_dim] each.

    ``attention_mask`` is additive [B or 1, 1, n, n]; None is causal (inside the window of a layer that has one).
    """

    hidden: Tensor
    position_embeddings: tuple[Tensor, Tensor]
    attention_mask: Tensor | None = None


@dataclass(frozen=True)
class ScaleGroup:
    """Linears that share one input, and the module before them that takes the inverse of their scales."""

    previous: str
    linears: tuple[str, ...]


@dataclass
class Seen:
    """What the linears of a layer got on the calibration batches: f32 [B, n, K] for each batch, by linear.

    ``weights`` f32 [B, n]: how much an error at each token counts; their mean over all tokens is 1.
    """

    batches: Sequence[LayerBatch]
    inputs: dict[str, list[Tensor]]
    weights: list[Tensor]

    @property
    def tokens(self) -> int:
        return sum(item.numel() for item in self.weights)

    def of(self, linear: str) -> list[Tensor]:
        """The inputs of ``linear``, one tensor [B·n, K] for each batch."""
        return [item.flatten(0, 1) for item in self.inputs[SHARED_INPUT.get(linear, linear)]]

    def chunks(self, linear: str) -> Iterator[tuple[Tensor, Tensor]]:
        """The same in pieces of at most 512 tokens, each with its tokens' weights."""
        for item, weights in zip(self.of(linear), self.weights, strict=True):
            yield from zip(item.split(TOKENS_AT_ONCE), weights.flatten().split(TOKENS_AT_ONCE), strict=True)

    def sampled(self, linear: str, tokens: int) -> Tensor:
        """Every j-th token [m, K], times the root of its weight; j = max(1, all // tokens)."""
        stride = max(1, self.tokens // tokens)
        kept, before = [], 0
        for item, weights in zip(self.of(linear), self.weights, strict=True):
            places = slice(-before % stride, None, stride)
            kept.append(item[places] * weights.flatten()[places, None].sqrt())
            before += len(item)
        return torch.cat(kept)


def scale_groups(layer: nn.Module) -> list[ScaleGroup]:
    """The groups that are searched. Raises ExportError for a layer that is neither Llama's nor Qwen2's.

    Values scale the output projection only where every value channel feeds one of its columns (no grouped queries).
    """
    if not isinstance(layer, (LlamaDecoderLayer, Qwen2DecoderLayer)):
        raise ExportError(
            f"a decoder layer of type {type(layer).__name__}", hint="Llama and Qwen2 decoders are supported"
        )
    attention: Any = layer.self_attn
    groups = [ScaleGroup("input_layernorm", LINEARS[:3])]
    if attention.v_proj.weight.shape == attention.o_proj.weight.shape:
        groups.append(ScaleGroup("self_attn.v_proj", ("self_attn.o_proj",)))
    groups.append(ScaleGroup("post_attention_layernorm", LINEARS[4:6]))
    groups.append(ScaleGroup("mlp.up_proj", ("mlp.down_proj",)))
    return groups


@torch.no_grad()
def run_layer(layer: nn.Module, batch: LayerBatch) -> Tensor:
    """The layer's output [B, n, D]."""
    return first(layer(batch.hidden, **attention_arguments(layer, batch)))


@torch.no_grad()
def watch(layer: nn.Module, batches: Sequence[LayerBatch], relative: bool = False) -> Seen:
    """Run the layer on the batches and keep what its linears get.

    ``relative``: an error counts by its share of the token's hidden state behind the layer, which is how the next
    norm sees it; otherwise all tokens count alike.
    """
    seen = Seen(batches, {name: [] for name in LINEARS if name not in SHARED_INPUT}, [])

    def keeper(name: str) -> Any:
        return lambda module, inputs: seen.inputs[name].append(inputs[0].float())

    hooks = [layer.get_submodule(name).register_forward_pre_hook(keeper(name)) for name in seen.inputs]
    try:
        for batch in batches:
            size = run_layer(layer, batch).float().square().mean(-1)
            seen.weights.append(1 / size.clamp(min=1e-12) if relative else torch.ones_like(size))
    finally:
        for hook in hooks:
            hook.remove()
    mean = torch.cat([item.flatten() for item in seen.weights]).mean()
    seen.weights = [item / mean for item in seen.weights]
    return seen


def run_attention(layer: nn.Module, normed: Tensor, batch: LayerBatch, weights: dict[str, Tensor]) -> Tensor:
    """The attention's output [B, n, D] in f32 on ``normed`` f32 [B, n, D], with ``weights`` in place of its own.

    ``weights`` are named inside the attention ("q_proj.weight"); the layer itself is not touched.
    """
    attention = layer.get_submodule("self_attn")
    parameters = {name: value.detach().float() for name, value in attention.named_parameters()} | weights
    mask: Tensor | None = attention_arguments(layer, batch)["attention_mask"]
    arguments = {
        "hidden_states": normed,
        "attention_mask": mask.float() if mask is not None and mask.is_floating_point() else mask,
        "position_embeddings": tuple(part.float() for part in batch.position_embeddings),
    }
    return first(functional_call(attention, parameters, kwargs=arguments))


def attention_arguments(layer: nn.Module, batch: LayerBatch) -> dict[str, Any]:
    """What layer and attention take beside the hidden states."""
    mask = batch.attention_mask if batch.attention_mask is not None else _causal_mask(layer, batch.hidden)
    return {"attention_mask": mask, "position_embeddings": batch.position_embeddings}


def first(output: Any) -> Tensor:
    """The tensor of a module that returns it bare, or first in a tuple."""
    result: Tensor = output[0] if isinstance(output, tuple) else output
    return result


def _causal_mask(layer: Any, hidden: Tensor) -> Tensor | None:
    """None where torch's attention makes the causal mask itself, else the additive mask [1, 1, n, n]."""
    attention, length = layer.self_attn, hidden.shape[1]
    window = getattr(attention, "sliding_window", None) or length
    if window >= length and attention.config._attn_implementation == "sdpa":
        return None
    place = torch.arange(length, device=hidden.device)
    distance = place[:, None] - place[None, :]
    hidden_keys = (distance < 0) | (distance >= window)
    mask = torch.zeros(1, 1, length, length, dtype=hidden.dtype, device=hidden.device)
    return mask.masked_fill_(hidden_keys, torch.finfo(hidden.dtype).min)
