"""NVILA's KV cache between streaming steps, and the expansion of a tiled picture's token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from models.conversation import takes_parts
from models.generation import check_room, context_limit
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
        held = int(self._cache.get_seq_length())
        if start_pos > held:
            raise PromptError(f"start_pos is {start_pos}, the cache holds {held} positions", hint="start_pos=0")
        check_room(start_pos, embeds.shape[1], context_limit(llm.config))
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
    image, the last one is already there, and so it is in ids that were expanded for a single tile. The text after the
    last line break is tokenised again, since a tokenizer may join the two. Ids with no image token, or several, are
    returned as they are.
    """
    image_id = tokenizer.media_token_ids["image"]
    ids = input_ids[0].tolist()
    if ids.count(image_id) != 1 or num_tiles < 1:
        return input_ids
    place, newline = ids.index(image_id), _ids_after_image("\n", tokenizer)
    added = set(tokenizer.get_added_vocab().values())
    end = next((index for index in range(place + 1, len(ids)) if ids[index] in added), len(ids))
    text = tokenizer.decode(ids[place + 1 : end], clean_up_tokenization_spaces=False)
    if takes_parts(tokenizer) or (num_tiles == 1 and text.startswith("\n")):
        tiles = ([image_id, *newline] * num_tiles)[: -len(newline)]
        return input_ids.new_tensor([ids[:place] + tiles + ids[place + 1 :]])
    joined = _ids_after_image("\n" + text, tokenizer)
    if _ids_after_image(text, tokenizer) != ids[place + 1 : end]:
        joined = newline + ids[place + 1 : end]  # ids that no text gives: they stay as they are
    tiles = [image_id, *newline] * (num_tiles - 1) + [image_id, *joined]
    return input_ids.new_tensor([ids[:place] + tiles + ids[end:]])


def _ids_after_image(text: str, tokenizer: Any) -> list[int]:
    """Ids of ``text`` where it follows an image token: some tokenizers treat the start of a text apart."""
    token = tokenizer.media_tokens["image"]
    ids: list[int] = tokenizer(token + text, add_special_tokens=False)["input_ids"]
    return ids[ids.index(tokenizer.media_token_ids["image"]) + 1 :]
