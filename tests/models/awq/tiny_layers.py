"""Tiny Llama and Qwen2 decoders with everything that real ones have: grouped queries, biases, uneven gains."""

from __future__ import annotations

from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from models.awq import LayerBatch


def decoder(
    family: str, *, hidden: int = 64, heads: int = 4, kv_heads: int = 2, ffn: int = 96, layers: int = 1, seed: int = 0,
    bias: bool = True, **more: Any,
) -> Any:  # fmt: skip
    """A causal language model with random weights, in evaluation mode. ``bias``: of Llama; Qwen2 always has its own."""
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {
        "vocab_size": 40, "hidden_size": hidden, "num_attention_heads": heads, "num_key_value_heads": kv_heads,
        "intermediate_size": ffn, "num_hidden_layers": layers, "max_position_embeddings": 256, **more,
    }  # fmt: skip
    if family == "llama":
        model: Any = LlamaForCausalLM(LlamaConfig(**sizes, attention_bias=bias, mlp_bias=bias))
    else:
        model = Qwen2ForCausalLM(Qwen2Config(**sizes))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.copy_(torch.exp(torch.randn_like(parameter)))
            elif name.endswith("bias"):
                parameter.normal_(std=0.3)
            elif "embed" not in name:
                parameter.normal_(std=parameter.shape[1] ** -0.5)
    return model.eval().requires_grad_(False)


def prompts(width: int, shapes: tuple[tuple[int, int], ...] = ((2, 17), (1, 9)), seed: int = 1) -> list[torch.Tensor]:
    """inputs_embeds [B, n, D] with a few channels much larger than others."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.exp(1.5 * torch.randn(width, generator=generator))
    return [torch.randn(*shape, width, generator=generator) * sizes for shape in shapes]


def batches(model: Any, embeds: list[torch.Tensor]) -> list[LayerBatch]:
    """The inputs of the first layer."""
    places = [torch.arange(item.shape[1])[None] for item in embeds]
    return [LayerBatch(item, model.model.rotary_emb(item, place)) for item, place in zip(embeds, places, strict=True)]
