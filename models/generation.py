"""What LLaVA and NVILA share when a fused prompt is answered: settings by name, padding, and the context's limit."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from runtime.errors import PromptError

_LIBRARY_MAX_LENGTH = 20  # what transformers uses when nobody says


def context_limit(config: Any) -> int:
    """Positions that a decoder's KV cache may hold: those that it was made for.

    Linear RoPE scaling stretches ``max_position_embeddings`` by its factor. Dynamic scaling changes the frequencies of
    keys that are cached already, so it is used up to the configured length alone, where it changes nothing; llama3's
    configuration holds the whole length.
    """
    described = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    linear = described.get("rope_type", described.get("type")) == "linear"
    return int(config.max_position_embeddings * (described.get("factor", 1.0) if linear else 1.0))


def check_room(held: int, more: int, limit: int) -> None:
    """Raises PromptError when ``more`` positions do not fit behind ``held`` ones."""
    if held + more > limit:
        raise PromptError(
            f"{held} positions in the cache and {more} new ones exceed the decoder's {limit}",
            hint="start a new conversation: start_pos=0",
        )


def settle(
    settings: dict[str, Any], config: GenerationConfig, prompt: int, limit: int, tokenizer: Any
) -> dict[str, Any]:
    """What transformers' ``generate`` is called with, beside its inputs.

    ``settings`` are the caller's keywords: fields of GenerationConfig override a copy of ``config`` by name, and
    everything else goes to transformers, which names a key that it does not know. ``prompt``: positions of the longest
    row. Raises PromptError when the answer could outgrow ``limit``.
    """
    config, rest = copy.deepcopy(config), dict(settings)
    fields = set(vars(GenerationConfig())) & set(rest)
    for name in fields:
        setattr(config, name, rest.pop(name))
    if "max_length" in fields and "max_new_tokens" not in fields:
        config.max_new_tokens = None
    fit_answer(config, prompt, limit)
    if config.stop_strings is not None:
        rest.setdefault("tokenizer", tokenizer)
    return {"generation_config": config, **rest}


def fit_answer(config: GenerationConfig, prompt: int, limit: int) -> None:
    """Set ``config``'s length so that an answer to ``prompt`` positions stays within ``limit``.

    ``max_new_tokens`` is a wish: PromptError when it does not fit. ``max_length`` is a bound: cut to ``limit``.
    """
    if config.max_new_tokens is not None:
        if prompt + config.max_new_tokens > limit:
            raise PromptError(
                f"a prompt of {prompt} positions and max_new_tokens {config.max_new_tokens} exceed the decoder's "
                f"{limit}",
                hint=f"max_new_tokens={limit - prompt}" if prompt < limit else "shorten the prompt",
            )
    else:
        bound = min(config.max_length or prompt + _LIBRARY_MAX_LENGTH, limit)
        if prompt >= bound:
            raise PromptError(
                f"a prompt of {prompt} positions leaves none of {bound} for an answer",
                hint="shorten the prompt" if bound == limit else "raise max_length, or set max_new_tokens",
            )
        config.max_new_tokens = bound - prompt
    config.max_length = None


def left_aligned(embeds: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Rows with their padding on the left, where generation needs it; positions count real tokens either way."""
    kept = mask.bool()
    if bool(kept.all()):
        return embeds, mask
    order = torch.argsort(kept.int(), dim=1, stable=True)
    return embeds.gather(1, order[..., None].expand_as(embeds)), mask.gather(1, order)
