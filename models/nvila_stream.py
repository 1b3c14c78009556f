"""NVILA's KV cache between streaming steps, and the expansion of a tiled picture's token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from models.conversation import takes_parts
from runtime.errors import PromptError


class StreamState:
    """One conversation's cache. A cache belongs to the decoder that filled it: another one starts anew."""

    def __init__(self) -> None:
        self._cache: Any = None
        self._owner: Any = None

    def feed(self, llm: Any, embeds: Tensor, start_pos: int) -> Tensor:
        """Logits [1, 1, V] after ``embeds`` [1, n, D] at ``start_pos``; what lay behind it in the cache is dropped.

        Raises PromptError when ``start_pos`` lies beyond the cache, and when the positions exceed the decoder's.
        """
        if start_pos == 0 or self._owner is not llm:
            self._cache, self._owner = DynamicCache(), llm
        held, limit = int(self._cache.get_seq_length()), int(llm.config.max_position_embeddings)
        if start_pos > held:
            raise PromptError(f"start_pos is {start_pos}, the cache holds {held} positions", hint="start_pos=0")
        if start_pos + embeds.shape[1] > limit:
            raise PromptError(
                f"{start_pos} positions in the cache and {embeds.shape[1]} new ones exceed the decoder's {limit}",
                hint="start a new conversation: start_pos=0",
            )
        if start_pos < held:
            self._cache.crop(start_pos - held)
        positions = torch.arange(start_pos, start_pos + embeds.shape[1], device=embeds.device).unsqueeze(0)
        output = llm(
            inputs_embeds=embeds,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: Tensor = output.logits
        return logits


def expand_tiles(input_ids: Tensor, num_tiles: int, tokenizer: Any) -> Tensor:
    """One image token [1, n] -> one per tile, each followed by a line break, by the tokenizer's own ids.

    The result is what ``generate_content`` tokenises: where the chat template itself writes the line break after an
    image, the last one is already there. Ids with no image token, or several, are returned as they are.
    """
    image_id = tokenizer.media_token_ids["image"]
    places = torch.where(input_ids[0] == image_id)[0].tolist()
    if len(places) != 1 or num_tiles < 1:
        return input_ids
    newline = tokenizer("\n", add_special_tokens=False)["input_ids"]
    expanded = ([image_id, *newline] * num_tiles)[: -len(newline) if takes_parts(tokenizer) else None]
    place = places[0]
    middle = input_ids.new_tensor([expanded])
    return torch.cat([input_ids[:, :place], middle, input_ids[:, place + 1 :]], dim=1)
