"""The part of a model before its decoder: prompts to embeddings, through its own template, tiling, tower and projector.

The decoder is not there: rows of the token table are read from the checkpoint's file one by one. Imports torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from export.checkpoint import read_checkpoint
from export.quantization.calibration import Sample
from export.quantization.source import DecoderSource
from export.vision.load import load_vision
from models.answering import AnswersPrompts
from models.encoders import build_encoder
from models.fusion import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from models.llava import LlavaMetaForCausalLM as LlavaFusion
from models.media import Image
from models.nvila_config import LlavaConfig
from models.nvila_generation import LlavaMetaForCausalLM as NvilaFusion
from models.nvila_model import LlavaMetaModel as NvilaParts
from models.nvila_tokenizer import build_tokenizer
from models.tiling import llava_tiling_spec
from models.tokenizer import read_tokenizer
from runtime.errors import ExportError, InputError
from runtime.tiling import TilingSpec

TILES_AT_ONCE = 2


@dataclass(frozen=True)
class Embedded:
    """A prompt for the decoder: states f32 [n, D], and which positions are text, bool [n]."""

    states: Tensor
    is_text: Tensor


class Front(ABC):
    """Turns prompts into embeddings."""

    @abstractmethod
    def embed(self, parts: list[Any]) -> tuple[Tensor, Tensor]:
        """(embeddings [1, n, D], labels [1, n]) of texts and pictures; labels are IGNORE_INDEX at pictures."""

    @torch.no_grad()
    def prompt(self, sample: Sample, max_positions: int) -> Embedded:
        """The embeddings of a prompt, cut after ``max_positions``. Raises ExportError when they are not finite."""
        embeds, labels = self.embed([Image(path) for path in sample.images] + [sample.text])
        states = embeds[0, :max_positions].float()
        if not torch.isfinite(states).all():
            shown = ", ".join(str(path) for path in sample.images) or repr(sample.text[:60])
            raise ExportError(f"the embeddings of {shown} are not finite", hint="check the checkpoint's vision tower")
        return Embedded(states, labels[0, :max_positions] != IGNORE_INDEX)


def load_front(root: Path, source: DecoderSource, device: torch.device) -> Front:
    """Tower, projector and tokenizer of a checkpoint, f32 on ``device``. Raises ExportError."""
    checkpoint = read_checkpoint(root)
    vision = load_vision(checkpoint)
    tower, projector = vision.tower.to(device), vision.projector.projector.to(device)
    table = _TokenTable(source, device)
    if checkpoint.family == "nvila":
        return _NvilaFront(LlavaConfig.from_directory(root), tower, projector, table)
    return _LlavaFront(root, source, tower, projector, table)


class _TokenTable(nn.Module):
    """Looks like an embedding; reads the rows that are asked for."""

    def __init__(self, source: DecoderSource, device: torch.device) -> None:
        super().__init__()
        self._source, self._device = source, device

    def forward(self, ids: Tensor) -> Tensor:
        rows = torch.from_numpy(self._source.embeds(ids.flatten().tolist()))
        return rows.view(*ids.shape, -1).to(self._device)


class _ByTile:
    """A tower that sees a few tiles at a time, so that a picture of many takes no more memory than one of few."""

    def __init__(self, tower: Any) -> None:
        self._tower = tower

    def __call__(self, tiles: Tensor) -> Tensor:
        return torch.cat([self._tower(part) for part in torch.split(tiles, TILES_AT_ONCE)])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tower, name)


class _NvilaFront(Front, NvilaParts, NvilaFusion):
    def __init__(self, config: LlavaConfig, tower: Any, projector: Any, table: _TokenTable) -> None:
        self.config, self.tokenizer = config, build_tokenizer(Path(config.resume_path) / "llm", config.chat_template)
        self.vision_tower: Any = _ByTile(tower)
        self.mm_projector = projector
        self._table = table
        self.encoders = {name: build_encoder(getattr(config, f"{name}_encoder"), self) for name in ("image", "video")}

    @property
    def device(self) -> torch.device:
        """Where the tower is."""
        device: torch.device = self.vision_tower.device
        return device

    def embed_tokens(self, ids: Tensor) -> Tensor:
        rows: Tensor = self._table(ids)
        return rows

    def embed(self, parts: list[Any]) -> tuple[Tensor, Tensor]:
        ids, media, settings = self.prepare_prompt(parts)
        ids = ids.to(self.device)
        on_device = {name: [item.to(self.device) for item in items] for name, items in media.items()}
        embeds, labels, _ = self._embed(ids, on_device, settings, ids, None)
        return embeds, labels


class _LlavaFront(Front, AnswersPrompts, LlavaFusion):
    def __init__(self, root: Path, source: DecoderSource, tower: Any, projector: Any, table: _TokenTable) -> None:
        raw = source.raw_config
        self.tokenizer = read_tokenizer(root)
        self.config = SimpleNamespace(image_aspect_ratio=raw.get("image_aspect_ratio"))
        if tower.image_processor is None:  # one file holds all weights: the processor lies beside it
            tower.image_processor = tower.processor_class.from_pretrained(root, local_files_only=True)
        by_tile = _ByTile(tower)
        self._body = SimpleNamespace(get_vision_tower=lambda: by_tile, mm_projector=projector, embed_tokens=table)
        index = raw.get("image_token_id", raw.get("image_token_index"))
        self.image_token = "<image>" if index is None else str(self.tokenizer.convert_ids_to_tokens(index))

    def get_model(self) -> Any:
        return self._body

    def tiling_spec(self) -> TilingSpec:
        return llava_tiling_spec(self)

    def embed(self, parts: list[Any]) -> tuple[Tensor, Tensor]:
        ids, pictures = self.prepare_prompt(parts)
        device = self._body.get_vision_tower().device
        ids = ids.to(device)
        if pictures is None:
            if (ids == IMAGE_TOKEN_INDEX).any():
                raise InputError("a prompt without pictures has a picture's token")
            return self._body.embed_tokens(ids), ids
        prepared = self.prepare_inputs_labels_for_multimodal(ids, None, None, None, ids, pictures.to(device))
        embeds, labels = prepared[4], prepared[5]
        assert embeds is not None and labels is not None
        return embeds, labels
