"""LLaVA from a prompt to a text."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from models.conversation import MediaPart, Turn, infer_stop_tokens, tokenize_turns
from models.fusion import IMAGE_TOKEN_INDEX
from models.image_tokens import IM_END, IM_START
from models.prompts import Prompt, as_conversation, complete_generation_config, take_apart
from models.tiling import pictures_tiles
from runtime.errors import UsageError
from runtime.tiling import TilingSpec


class AnswersPrompts:
    """Mixin: ``generate_content`` for a LLaVA model that has its ``tokenizer``."""

    tokenizer: Any
    image_token: str

    def tiling_spec(self) -> TilingSpec:
        raise TypeError("a concrete model defines tiling_spec")

    def generate_content(self, prompt: Prompt, generation_config: GenerationConfig | None = None) -> str:
        """The answer to a prompt: a text, or a list of texts, ``Image``, ``Video`` and Pillow images.

        Without ``generation_config`` the model's own defaults (greedy) up to the tokenizer's length.
        """
        ids, pixels = self.prepare_prompt(prompt)
        own = self.generation_config  # type: ignore[attr-defined]
        chosen = generation_config is not None
        config = complete_generation_config(
            generation_config if chosen else own, self._tokenizer(), self.stop_token_ids, chosen=chosen
        )
        answer = self.generate(ids, images=pixels, generation_config=config)  # type: ignore[attr-defined]
        new = answer[0] if pixels is not None else answer[0, ids.shape[1] :]
        text: str = self._tokenizer().decode(new, skip_special_tokens=True)
        return text.strip()

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """Ids that end an answer."""
        return infer_stop_tokens(self._tokenizer())

    def prepare_prompt(self, prompt: Prompt) -> tuple[Tensor, Tensor | None]:
        """Ids [1, n] with IMAGE_TOKEN_INDEX at each picture, and pictures [k, 3, S, S] or None."""
        spec = self.tiling_spec()
        turns, media = take_apart(as_conversation(prompt), spec.video_frames, frames_as_pictures=True)
        written = tokenize_turns([_on_own_lines(turn) for turn in turns], self._tokenizer())
        ids = torch.tensor([self._with_places(written)])
        if not media.images:
            return ids, None
        tower = self.get_vision_tower()  # type: ignore[attr-defined]
        tiles, _ = pictures_tiles(media.images, spec, tower.image_processor)
        return ids, torch.cat(tiles)

    def _with_places(self, ids: list[int]) -> list[int]:
        """IMAGE_TOKEN_INDEX for each image token, between <im_start> and <im_end> where the model has them."""
        tokenizer, places = self._tokenizer(), [IMAGE_TOKEN_INDEX]
        if getattr(self.config, "mm_use_im_start_end", False):  # type: ignore[attr-defined]
            start, end = tokenizer.convert_tokens_to_ids([IM_START, IM_END])
            places = [start, IMAGE_TOKEN_INDEX, end]
        image_id = tokenizer.convert_tokens_to_ids(self.image_token)
        return [new for token in ids for new in (places if token == image_id else [token])]

    def _tokenizer(self) -> Any:
        if self.tokenizer is None:
            raise UsageError("the model has no tokenizer", hint="load it with models.checkpoint.load_checkpoint")
        return self.tokenizer


def _on_own_lines(turn: Turn) -> Turn:
    """A line break follows each picture, as LLaVA was trained; templates that write pictures do so by themselves."""
    return Turn(turn.role, tuple(MediaPart(p.token, 1) if isinstance(p, MediaPart) else p for p in turn.parts))
