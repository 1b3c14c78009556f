"""NVILA from a prompt to embeddings and texts: the mixin ``LlavaMetaForCausalLM``."""

from __future__ import annotations

import logging
from abc import ABC
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from models import fusion
from models.conversation import MEDIA_TOKENS, MediaPart, tokenize_turns
from models.fusion import IGNORE_INDEX, Row
from models.generation import context_limit, left_aligned, settle
from models.nvila_bench import measure, report
from models.nvila_stream import StreamState, expand_tiles
from models.prompts import Media, Prompt, as_conversation, complete_generation_config, take_apart
from models.tiling import nvila_tiling_spec, pictures_tiles
from runtime.errors import InputError, PromptError
from runtime.tiling import TilingSpec

MediaTensors = Mapping[str, Sequence[Tensor]]
MediaConfig = Mapping[str, dict[str, Any]]
_logger = logging.getLogger(__name__)


class LlavaMetaForCausalLM(ABC):
    """Mixin beside ``LlavaMetaModel``: fuses media into prompts and generates."""

    tokenizer: Any
    encoders: Any
    config: Any
    _stream: StreamState

    def decoder(self, quant_llm: bool) -> Any:
        """The causal language model on int4 or on full weights; a concrete model defines it."""
        raise TypeError("a concrete model defines decoder")

    def embed_tokens(self, ids: Tensor) -> Tensor:
        """Rows of the token table."""
        raise TypeError("a concrete model defines embed_tokens")

    def _embed(
        self,
        input_ids: Tensor,
        media: MediaTensors | None,
        media_config: MediaConfig | None,
        labels: Tensor | None,
        attention_mask: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(inputs_embeds [B, n, D], labels [B, n], mask bool [B, n]) with media in the places of their tokens.

        ``input_ids`` [B, n], padded on either side where ``attention_mask`` (bool or 0/1) is 0. ``media``: per name a
        list of tensors, taken in the order of the batch, each name from its own queue; entries under "dummy" add
        nothing. Rows longer than the tokenizer's ``model_max_length`` are cut with a warning. Raises IndexError when
        media run out, ValueError when some are left over, KeyError for an unknown name, InputError for an empty row.
        """
        labels = torch.full_like(input_ids, IGNORE_INDEX) if labels is None else labels
        mask = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        queues = self.__embed_media_tokens(media, media_config)
        rows = []
        for ids, row_labels, keep in zip(input_ids, labels, mask, strict=True):
            if not keep.any():
                raise InputError("a row of the batch is empty: every token is masked")
            rows.append(self.__fuse_row(ids[keep], row_labels[keep], queues))
        for name, queue in queues.items():
            if queue:
                raise ValueError(f"Not all {name} embeddings are consumed!")
        batch = fusion.pad_rows([self.__truncate_sequence(row) for row in rows], self.tokenizer.padding_side)
        return batch.embeds + self.__dummy(media, batch.embeds), batch.labels, batch.mask

    def __embed_media_tokens(self, media: MediaTensors | None, config: MediaConfig | None) -> dict[str, deque[Tensor]]:
        queues: dict[str, deque[Tensor]] = {name: deque() for name in self.tokenizer.media_token_ids}
        for name, tensors in (media or {}).items():
            if name == "dummy" or len(tensors) == 0:
                continue
            settings = (config or {}).get(name, {}) if not isinstance(config, dict) or name in config else {}
            queues[name] = deque(self.encoders[name](tensors, settings))
        return queues

    def __fuse_row(self, ids: Tensor, labels: Tensor, queues: dict[str, deque[Tensor]]) -> Row:
        names = {token_id: name for name, token_id in self.tokenizer.media_token_ids.items()}
        places = [index for index, token in enumerate(ids.tolist()) if token in names]
        is_text = torch.ones_like(ids, dtype=torch.bool)
        is_text[places] = False
        text = self.embed_tokens(ids[is_text])
        embeds, row_labels, start, taken = [], [], 0, 0
        for place in [*places, len(ids)]:
            embeds.append(text[taken : taken + place - start])
            row_labels.append(labels[start:place])
            taken, start = taken + place - start, place + 1
            if place == len(ids):
                break
            name = names[int(ids[place])]
            if not queues[name]:
                raise IndexError(f"no {name} embeddings left: the prompt holds more {name} tokens than media[{name!r}]")
            block = queues[name].popleft().to(text)
            embeds.append(block)
            row_labels.append(labels.new_full((len(block),), IGNORE_INDEX))
        return Row(torch.cat(embeds), torch.cat(row_labels))

    def __truncate_sequence(self, row: Row) -> Row:
        limit, length = self.tokenizer.model_max_length, len(row.embeds)
        if length <= limit:
            return row
        _logger.warning("Truncating a sequence of %d positions to `model_max_length` (%d).", length, limit)
        return row.cut(limit)

    def __dummy(self, media: MediaTensors | None, like: Tensor) -> Tensor | float:
        dummies = (media or {}).get("dummy")
        return 0.0 if not dummies else sum(tensor.to(like).sum() for tensor in dummies) * 0.0

    @torch.inference_mode()
    def generate(
        self,
        input_ids: Tensor | None = None,
        media: MediaTensors | None = None,
        media_config: MediaConfig | None = None,
        attention_mask: Tensor | None = None,
        quant_llm: bool = True,
        **generation_kwargs: Any,
    ) -> Any:
        """transformers' ``generate`` on the fused prompt: the new ids [B, n].

        ``generation_kwargs`` are transformers': ``generation_config`` (else ``default_generation_config``), each of its
        fields by name, ``streamer``, ``stopping_criteria``, ``logits_processor``, ...; an unknown one is named in a
        ValueError. ``quant_llm``: int4 weights, made on first use where the checkpoint has none. Raises PromptError
        when prompt and answer exceed the decoder's positions.
        """
        if input_ids is None:
            raise InputError("generate needs input_ids")
        embeds, _, mask = self._embed(input_ids, media, media_config, None, attention_mask)
        llm, longest = self.decoder(quant_llm), int(mask.sum(dim=1).max())
        config = self._completed(generation_kwargs.pop("generation_config", None))
        settings = settle(generation_kwargs, config, longest, context_limit(llm.config), self.tokenizer)
        embeds, mask = left_aligned(embeds, mask)
        return llm.generate(inputs_embeds=embeds, attention_mask=mask, **settings)

    @torch.inference_mode()
    def generate_content(
        self, prompt: Prompt, generation_config: GenerationConfig | None = None, quant_llm: bool = True
    ) -> str:
        """The answer to a prompt: a text, or a list of texts, ``Image``, ``Video`` and Pillow images.

        A media token inside a text is text. Without ``generation_config``, ``default_generation_config``.
        """
        ids, media, media_config = self.prepare_prompt(prompt)
        answer = self.generate(ids, media, media_config, quant_llm=quant_llm, generation_config=generation_config)
        text: str = self.tokenizer.decode(answer[0], skip_special_tokens=True)
        return text.strip()

    def prepare_prompt(self, prompt: Prompt) -> tuple[Tensor, dict[str, list[Tensor]], dict[str, dict[str, Any]]]:
        """Ids [1, n], media and their configuration for one human turn."""
        conversation = as_conversation(prompt)
        media, media_config = self.prepare_media(conversation)
        turns, _ = take_apart(conversation, self.tiling_spec().video_frames)
        return torch.tensor([tokenize_turns(turns, self.tokenizer)]), media, media_config

    def prepare_media(
        self, conversation: list[dict[str, Any]]
    ) -> tuple[dict[str, list[Tensor]], dict[str, dict[str, Any]]]:
        """Tensors of the conversation's media and their configuration; the messages then hold places for them.

        One picture is tiled as the model does it, two or more are not (unless ``config.tile_all``). A picture cut by
        ``dynamic`` has one place per tile.
        """
        spec = self.tiling_spec()
        turns, found = take_apart(conversation, spec.video_frames)
        media, media_config, tiles = self._media_tensors(found, spec)
        places = iter(tiles)
        for message, turn in zip(conversation, turns, strict=True):
            message["value"] = [_repeated(part, places) for part in turn.parts]
        return media, media_config

    def _media_tensors(
        self, found: Media, spec: TilingSpec
    ) -> tuple[dict[str, list[Tensor]], dict[str, dict[str, Any]], list[int | None]]:
        dtype, processor = self.vision_tower.dtype, self.vision_tower.image_processor  # type: ignore[attr-defined]
        media: dict[str, list[Tensor]] = {}
        settings: dict[str, dict[str, Any]] = {"image": {}, "video": {}}
        places: list[int | None] = []
        if found.images:
            tiles, layouts = pictures_tiles(found.images, spec, processor)
            media["image"] = [tile.to(dtype) for stack in tiles for tile in stack]
            if spec.mode == "dynamic_s2":
                settings["image"]["block_sizes"] = [lay.grid if lay.multi_scale else None for lay in layouts]
            written = spec.mode == "dynamic" and (len(layouts) == 1 or spec.tile_all)
            places = [layout.num_tiles if written else None for layout in layouts]
        for frames in found.videos:
            several = TilingSpec(**_plain_fields(spec))
            tiles, _ = pictures_tiles(frames, several, processor)
            media.setdefault("video", []).append(torch.cat(tiles).to(dtype))
        return media, settings, places

    def benchmark(self, prompt: Prompt, quant_llm: bool = True) -> None:
        """Print one table of vision, prefill and decode times (median and spread) for a prompt, and log it as JSON."""
        report(measure(self, prompt, quant_llm))

    @property
    def default_generation_config(self) -> GenerationConfig:
        """The decoder's own, completed with the tokenizer's ends and length; a fresh copy each time."""
        own = self.get_llm().generation_config  # type: ignore[attr-defined]
        return complete_generation_config(own, self.tokenizer, self.tokenizer.stop_token_ids)

    def _completed(self, config: GenerationConfig | None) -> GenerationConfig:
        """A caller's settings with what they leave open; the defaults without any."""
        if config is None:
            return self.default_generation_config
        return complete_generation_config(config, self.tokenizer, self.tokenizer.stop_token_ids, chosen=True)

    def tiling_spec(self) -> TilingSpec:
        """How pictures are cut for this model."""
        return nvila_tiling_spec(self)

    @torch.inference_mode()
    def stream_gen(
        self,
        input_ids: Tensor,
        media: MediaTensors | None,
        media_cfg: MediaConfig | None,
        start_pos: int,
        chunk_prefilling: bool,
        quant_llm: bool = True,
        attention_mask: Tensor | None = None,
    ) -> tuple[Tensor, int]:
        """One step of streaming: (logits of the last position [1, 1, V], positions that were fed).

        ``start_pos``: positions of the cache to keep, 0 starts anew. With ``chunk_prefilling`` a new round is fed on
        top of the cache; without it a round starts at 0 with the whole history. An image that ``dynamic`` cut into
        tiles may have one token in ``input_ids``, which is expanded exactly as ``generate_content`` writes it.
        ``models.nvila_rounds`` keeps the positions of several rounds. Raises PromptError when the cache cannot hold
        the new positions, InputError for more than one row.
        """
        if input_ids.shape[0] != 1:
            raise InputError(f"stream_gen takes one row, got {input_ids.shape[0]}", hint="generate takes batches")
        if start_pos and input_ids.shape[1] > 1 and not chunk_prefilling:
            raise PromptError(
                f"start_pos {start_pos} with {input_ids.shape[1]} tokens needs chunk_prefilling",
                hint="chunk_prefilling=True, or start_pos=0 with the whole conversation",
            )
        if media and self.tiling_spec().mode == "dynamic":
            tiles = sum(len(item) if item.ndim == 4 else 1 for item in media.get("image", ()))
            input_ids = expand_tiles(input_ids, tiles, self.tokenizer)
        embeds, _, _ = self._embed(input_ids, media, media_cfg, None, attention_mask)
        return self._stream.feed(self.decoder(quant_llm), embeds, start_pos), embeds.shape[1]


def _repeated(part: str | MediaPart, places: Any) -> str | MediaPart:
    is_image = isinstance(part, MediaPart) and part.token == MEDIA_TOKENS["image"]
    return MediaPart(MEDIA_TOKENS["image"], next(places)) if is_image else part


def _plain_fields(spec: TilingSpec) -> dict[str, Any]:
    """A video's frames are never tiled."""
    fields = {name: getattr(spec, name) for name in spec.__slots__}
    return fields | {"tile_all": False, "mode": "resize", "scales_px": ()}
