"""LLaVA: a vision tower and a projector in front of a causal language model.

``LlavaMetaModel`` and ``LlavaMetaForCausalLM`` are mixins for any decoder; ``LlavaLlamaForCausalLM`` is the concrete
model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel

from models import fusion, image_tokens
from models.adapter import load_adapter
from models.answering import AnswersPrompts
from models.fusion import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from models.generation import context_limit, left_aligned, settle
from models.llava_store import save_llava
from models.projector import build_vision_projector
from models.tiling import llava_tiling_spec
from models.vision_tower import VisionTower, build_vision_tower
from runtime.tiling import TilingSpec

__all__ = [
    "IGNORE_INDEX",
    "IMAGE_TOKEN_INDEX",
    "LlavaLlamaConfig",
    "LlavaLlamaForCausalLM",
    "LlavaMetaForCausalLM",
    "LlavaMetaModel",
]

Prepared = tuple["Tensor | None", "Tensor | None", "Tensor | None", Any, "Tensor | None", "Tensor | None"]


class LlavaMetaModel:
    """Mixin before a decoder's body: owns the vision tower and the projector.

    When ``config`` has ``mm_vision_tower``, the tower is made with its weights still unread, and the projector is
    built.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)  # type: ignore[call-arg]
        if getattr(config, "mm_vision_tower", None):
            self.vision_tower: Any = build_vision_tower(config, delay_load=True)
            self.mm_projector: nn.Module = build_vision_projector(config)

    def get_vision_tower(self) -> VisionTower | None:
        """The tower, taken out of the list that hides it from FSDP; None when there is none."""
        tower = getattr(self, "vision_tower", None)
        return tower[0] if isinstance(tower, (list, tuple)) else tower

    def initialize_vision_modules(self, model_args: Any, fsdp: Sequence[str] | None = None) -> None:
        """Load the tower and the projector that ``model_args`` describes, and write both into the configuration.

        Reads ``vision_tower``, ``mm_vision_select_layer``, ``mm_vision_select_feature``, ``pretrain_mm_mlp_adapter``
        and ``mm_projector_type`` (default "linear"). With a non-empty ``fsdp`` the tower lies in a list, so that
        neither ``parameters()`` nor ``state_dict()`` sees it. May be called twice.
        """
        config: Any = self.config  # type: ignore[attr-defined]
        config.mm_vision_tower = model_args.vision_tower
        tower = self.get_vision_tower()
        if tower is None:
            tower = build_vision_tower(model_args)
        else:
            tower.load_model()
        self._place_tower(tower, hidden=bool(fsdp))
        config.use_mm_proj = True
        config.mm_projector_type = getattr(model_args, "mm_projector_type", "linear")
        config.mm_hidden_size = tower.hidden_size
        config.mm_vision_select_layer = model_args.mm_vision_select_layer
        config.mm_vision_select_feature = model_args.mm_vision_select_feature
        if getattr(self, "mm_projector", None) is None:
            self.mm_projector = build_vision_projector(config)
        else:
            self.mm_projector.requires_grad_(True)
        if model_args.pretrain_mm_mlp_adapter is not None:
            load_adapter(self.mm_projector, model_args.pretrain_mm_mlp_adapter)

    def _place_tower(self, tower: VisionTower, *, hidden: bool) -> None:
        if hasattr(self, "vision_tower"):
            del self.vision_tower  # a module and a list cannot take each other's place in nn.Module
        self.vision_tower = [tower] if hidden else tower


class LlavaMetaForCausalLM(ABC):
    """Mixin before a causal language model: turns token ids and images into ``inputs_embeds``."""

    config: Any

    @abstractmethod
    def get_model(self) -> Any:
        """The body, a ``LlavaMetaModel``."""

    def get_vision_tower(self) -> VisionTower | None:
        """The vision tower, or None."""
        tower: VisionTower | None = self.get_model().get_vision_tower()
        return tower

    def encode_images(self, images: Tensor) -> Tensor:
        """Images [B, 3, S, S] -> rows for the decoder [B, N, hidden]; the tower stays in the dtype it has."""
        tower = self.get_vision_tower()
        assert tower is not None, "encode_images needs a vision tower"
        projector = self.get_model().mm_projector
        features = tower(images)
        weight = next(projector.parameters(), None)
        projected: Tensor = projector(features if weight is None else features.to(weight.dtype))
        return projected

    def prepare_inputs_labels_for_multimodal(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None,
        attention_mask: Tensor | None,
        past_key_values: Any,
        labels: Tensor | None,
        images: Tensor | Sequence[Tensor] | None,
    ) -> Prepared:
        """(input_ids, position_ids, attention_mask, past_key_values, inputs_embeds, labels) with images in their
        places.

        ``input_ids`` [B, n] hold IMAGE_TOKEN_INDEX where an image stands; images go to the tokens in the order of the
        batch. Without a tower or images, or for a single token that is no image, nothing is fused and
        ``inputs_embeds`` is None; one token after a cache gets its mask and position. Otherwise ``input_ids`` is
        None; mask, positions and labels stay None where they came as None. Rows are cut at
        ``config.tokenizer_model_max_length`` and padded on ``config.tokenizer_padding_side``. Raises IndexError when
        images run out; left-over images are ignored.
        """
        if self.get_vision_tower() is None or images is None:
            return input_ids, position_ids, attention_mask, past_key_values, None, labels
        if input_ids.shape[1] == 1 and not (input_ids == IMAGE_TOKEN_INDEX).any():
            if past_key_values is not None:
                attention_mask, position_ids = fusion.decode_step_inputs(
                    past_key_values, attention_mask, input_ids.shape[0]
                )
            return input_ids, position_ids, attention_mask, past_key_values, None, labels
        blocks = fusion.image_blocks(images, self.encode_images)
        tuned = getattr(self.config, "tune_mm_mlp_adapter", False)
        if tuned and getattr(self.config, "mm_use_im_start_end", False):
            raise NotImplementedError("tune_mm_mlp_adapter together with mm_use_im_start_end is not supported")
        batch = self._fuse(input_ids, attention_mask, labels, blocks)
        mask = None if attention_mask is None else batch.mask.to(attention_mask.dtype)
        positions = None if position_ids is None else batch.position_ids
        return None, positions, mask, past_key_values, batch.embeds, None if labels is None else batch.labels

    def _fuse(
        self, input_ids: Tensor, attention_mask: Tensor | None, labels: Tensor | None, blocks: list[Tensor]
    ) -> fusion.Batch:
        mask = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        wanted = torch.full_like(input_ids, IGNORE_INDEX) if labels is None else labels
        embed, remaining = self.get_model().embed_tokens, iter(blocks)
        rows = [
            fusion.splice_images(ids[keep], row_labels[keep], remaining, embed)
            for ids, row_labels, keep in zip(input_ids, wanted, mask, strict=True)
        ]
        longest = getattr(self.config, "tokenizer_model_max_length", None)
        rows = rows if longest is None else [row.cut(longest) for row in rows]
        return fusion.pad_rows(rows, getattr(self.config, "tokenizer_padding_side", "right"))

    def initialize_vision_tokenizer(self, model_args: Any, tokenizer: Any) -> None:
        """Add the image tokens that ``model_args`` asks for and give them embeddings; see ``models.image_tokens``."""
        image_tokens.initialize_vision_tokenizer(self, model_args, tokenizer)


class LlavaLlamaConfig(LlamaConfig):
    """A Llama configuration with LLaVA's ``mm_*`` fields."""

    model_type = "llava_llama"


class LlavaLlamaModel(LlavaMetaModel, LlamaModel):
    """Llama's body with tower and projector."""

    config_class = LlavaLlamaConfig


class LlavaLlamaForCausalLM(LlamaForCausalLM, LlavaMetaForCausalLM, AnswersPrompts):
    """LLaVA on Llama. ``tokenizer`` is set by ``models.checkpoint``; ``generate_content`` needs it."""

    config_class = LlavaLlamaConfig
    tokenizer: Any = None
    image_token: str = "<image>"
    quantization: str = "none"  # what chose the integers of packed linears; see models.packed
    head_bits: int = 4  # of the head on integers, as the exporter stores it

    def __init__(self, config: LlavaLlamaConfig) -> None:
        super(LlamaForCausalLM, self).__init__(config)
        self.model = LlavaLlamaModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_model(self) -> LlavaLlamaModel:
        return self.model

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        images: Tensor | Sequence[Tensor] | None = None,
        **kwargs: Any,
    ) -> Any:
        """As ``LlamaForCausalLM.forward``, with ``images`` for the image tokens in ``input_ids``."""
        if inputs_embeds is None and input_ids is not None:
            input_ids, position_ids, attention_mask, past_key_values, inputs_embeds, labels = (
                self.prepare_inputs_labels_for_multimodal(
                    input_ids, position_ids, attention_mask, past_key_values, labels, images
                )
            )
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            labels=labels,
            **kwargs,
        )

    @torch.no_grad()
    def generate(  # type: ignore[override]
        self, inputs: Tensor | None = None, images: Tensor | Sequence[Tensor] | None = None, **kwargs: Any
    ) -> Any:
        """transformers' ``generate`` for ids [B, n] with image tokens; returns the new ids alone when images are
        given. Rows may be padded on either side. Raises PromptError when prompt and answer exceed the decoder's
        positions.
        """
        assert inputs is not None, "generate needs ids"
        given = kwargs.get("attention_mask")
        mask = torch.ones_like(inputs) if given is None else given
        limit = context_limit(self.config)
        config = kwargs.pop("generation_config", None) or self.generation_config
        if images is None:
            settings = settle(kwargs, config, int(mask.sum(dim=1).max()), limit, self.tokenizer)
            return super().generate(inputs, **settings)
        kwargs.pop("attention_mask", None)
        _, _, mask, _, embeds, _ = self.prepare_inputs_labels_for_multimodal(inputs, None, mask, None, None, images)
        settings = settle(kwargs, config, int(mask.sum(dim=1).max()), limit, self.tokenizer)
        embeds, mask = left_aligned(embeds, mask)
        return super().generate(inputs_embeds=embeds, attention_mask=mask, **settings)

    def save_pretrained(  # type: ignore[override]
        self, save_directory: str | Path, state_dict: dict[str, Tensor] | None = None, **kwargs: Any
    ) -> None:
        """Write LLaVA's own layout with the tower in ``vision_tower``; from ``state_dict`` when it is given.

        ``models.checkpoint.load_checkpoint`` reads it back to the same bits. The directory is written beside its place
        and renamed, so an interrupted save leaves what was there. Other keywords are transformers'. Raises OutputError
        for a full disk, a tower that is not CLIP, and integer weights.
        """

        def save(folder: Path, tensors: dict[str, Tensor]) -> None:
            super(LlavaLlamaForCausalLM, self).save_pretrained(folder, state_dict=tensors, **kwargs)

        save_llava(self, Path(save_directory), state_dict, save)

    def tiling_spec(self) -> TilingSpec:
        """How pictures are cut for this model."""
        return llava_tiling_spec(self)

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """Ids that end an answer."""
        return (int(self.tokenizer.eos_token_id),)
