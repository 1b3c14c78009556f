"""The part of a model before its decoder: prompts to embeddings, through its own template, tiling, tower and projector.

The decoder is not there: rows of the token table are read from the checkpoint's file one by one. On the CPU tower and
projector are not in memory either: each operator reads its weights when it runs. Imports torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from export.checkpoint import Checkpoint, read_checkpoint
from export.quantization.calibration import Sample
from export.quantization.source import DecoderSource
from export.vision.load import load_vision
from export.vision.streamed import StreamedWeights
from models.answering import AnswersPrompts
from models.checkpoint import original_tokenizer
from models.encoders import build_encoder
from models.fusion import IGNORE_INDEX
from models.lazy_parameters import WithoutMemory
from models.llava import LlavaMetaForCausalLM as LlavaFusion
from models.media import Image
from models.nvila_config import LlavaConfig
from models.nvila_generation import LlavaMetaForCausalLM as NvilaFusion
from models.nvila_model import LlavaMetaModel as NvilaParts
from models.nvila_tokenizer import build_tokenizer
from models.tiling import llava_tiling_spec
from models.tokenizer import read_tokenizer
from runtime.errors import ExportError
from runtime.tiling import TilingSpec

TILES_AT_ONCE = 4


@dataclass(frozen=True)
class Embedded:
    """A prompt for the decoder: states f32 [n, D], and which positions are text, bool [n]."""

    states: Tensor
    is_text: Tensor


class Front(ABC):
    """Turns prompts into embeddings. A context manager."""

    weights: Weights

    def __enter__(self) -> Front:
        return self

    def __exit__(self, *_: object) -> None:
        self.weights.close()

    @abstractmethod
    def embed(self, parts: list[Any]) -> tuple[Tensor, Tensor]:
        """(embeddings [1, n, D], labels [1, n]) of texts and pictures; labels are IGNORE_INDEX at pictures."""

    @torch.no_grad()
    def prompt(self, sample: Sample, max_positions: int) -> Embedded:
        """The embeddings of a prompt, cut after ``max_positions``. Raises ExportError when they are not finite."""
        with self.weights.reading():
            embeds, labels = self.embed([Image(path) for path in sample.images] + [sample.text])
        states = embeds[0, :max_positions].float()
        if not torch.isfinite(states).all():
            shown = ", ".join(str(path) for path in sample.images) or repr(sample.text[:60])
            raise ExportError(f"the embeddings of {shown} are not finite", hint="check the checkpoint's vision tower")
        return Embedded(states, labels[0, :max_positions] != IGNORE_INDEX)


class Weights:
    """Tower and projector of a checkpoint, f32: on disk until they are used, or on another device than the CPU."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device) -> None:
        self.device = device
        self._files = ExitStack()
        self._streamed: list[StreamedWeights] = []
        if device.type == "cpu":
            with WithoutMemory():
                modules = load_vision(checkpoint)
            for module in (modules.tower, modules.projector):
                self._streamed.append(self._files.enter_context(StreamedWeights(module)))
        else:
            modules = load_vision(checkpoint)
            modules.tower.to(device)
            modules.projector.to(device)
        self.tower: Any = modules.tower
        inner: Any = self.tower.vision_tower
        inner.set_attn_implementation("sdpa")
        if self.tower.image_processor is None:  # one file holds all weights: the processor lies beside it
            self.tower.image_processor = self.tower.processor_class.from_pretrained(
                checkpoint.tower, local_files_only=True
            )
        # The model repeats a plain tile's channels itself.
        projector: Any = modules.projector.projector
        self.projector: Any = projector[-1] if checkpoint.repeats > 1 else projector

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Inside it the modules can be called."""
        with ExitStack() as stack:
            for weights in self._streamed:
                stack.enter_context(weights.read_as_needed())
            yield

    def close(self) -> None:
        """Closes the files."""
        self._files.close()


def load_front(root: Path, source: DecoderSource, device: torch.device) -> Front:
    """The front of a checkpoint, to run on ``device``. Raises ExportError."""
    checkpoint = read_checkpoint(root)
    weights, table = Weights(checkpoint, device), _TokenTable(source, device)
    if checkpoint.family == "nvila":
        return _NvilaFront(LlavaConfig.from_directory(root), weights, table)
    config = SimpleNamespace(**source.raw_config)
    if checkpoint.layout == "llava-original":
        return _LlavaFront(config, original_tokenizer(root, config), "<image>", weights, table)
    tokenizer, index = read_tokenizer(root), checkpoint.prompt.image_token_id
    token = "<image>" if index is None else str(tokenizer.convert_ids_to_tokens(index))
    return _LlavaFront(config, tokenizer, token, weights, table)


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
    def __init__(self, config: LlavaConfig, weights: Weights, table: _TokenTable) -> None:
        self.config, self.tokenizer = config, build_tokenizer(Path(config.resume_path) / "llm", config.chat_template)
        self.weights = weights
        self.vision_tower: Any = _ByTile(weights.tower)
        self.mm_projector = weights.projector
        self._table = table
        self.encoders = {name: build_encoder(getattr(config, f"{name}_encoder"), self) for name in ("image", "video")}

    @property
    def device(self) -> torch.device:
        """Where the tower is."""
        return self.weights.device

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
    def __init__(
        self, config: SimpleNamespace, tokenizer: Any, image_token: str, weights: Weights, table: _TokenTable
    ) -> None:
        self.config, self.tokenizer, self.image_token, self.weights = config, tokenizer, image_token, weights
        tower = _ByTile(weights.tower)
        self._body = SimpleNamespace(get_vision_tower=lambda: tower, mm_projector=weights.projector, embed_tokens=table)

    def get_model(self) -> Any:
        return self._body

    def tiling_spec(self) -> TilingSpec:
        return llava_tiling_spec(self)

    def embed(self, parts: list[Any]) -> tuple[Tensor, Tensor]:
        ids, pictures = self.prepare_prompt(parts)
        ids = ids.to(self.weights.device)
        if pictures is None:
            return self._body.embed_tokens(ids), ids
        prepared = self.prepare_inputs_labels_for_multimodal(
            ids, None, None, None, ids, pictures.to(self.weights.device)
        )
        embeds, labels = prepared[4], prepared[5]
        assert embeds is not None and labels is not None
        return embeds, labels
