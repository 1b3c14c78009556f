"""NVILA's parts and how pictures become image tokens: the mixin ``LlavaMetaModel``."""

from __future__ import annotations

import logging
from abc import ABC
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from models import mosaic
from models.encoders import BasicImageEncoder, build_encoder
from models.nvila_config import LlavaConfig, get_model_config, parse_dtype
from models.nvila_store import save_parts
from models.nvila_tokenizer import build_tokenizer
from models.projector import MultimodalProjector, build_mm_projector
from models.s2_tower import build_vila_vision_tower
from models.vision_tower import VisionTower
from models.weights import model_directory, read_json
from runtime.errors import InputError

Block = tuple[int, int]
_logger = logging.getLogger(__name__)


class LlavaMetaModel(ABC):
    """Mixin: owns tokenizer, decoder, vision tower, projector and media encoders."""

    config: Any
    llm: Any
    tokenizer: Any
    vision_tower: VisionTower
    mm_projector: MultimodalProjector
    encoders: dict[str, BasicImageEncoder]
    is_loaded: bool

    def init_vlm(self, config: Any, *args: Any, **kwargs: Any) -> None:
        """Build tokenizer, tower, projector and encoders from the folders that ``config`` names; the decoder is the
        subclass's. A second call does nothing. ``config.model_dtype`` (default torch.float16, with a warning) is parsed
        through a table. Further arguments are accepted and unused.
        """
        if any(getattr(self, part, None) is not None for part in ("llm", "vision_tower", "mm_projector")):
            return
        if config.model_dtype is None:
            _logger.warning("model_dtype is not configured, torch.float16 is taken")
            config.model_dtype = "torch.float16"
        dtype = parse_dtype(config.model_dtype)
        llm_path, tower_path, projector_path = get_model_config(config)
        self.llm_cfg = llm_path
        self.tokenizer = build_tokenizer(llm_path, config.chat_template)
        if config.hidden_size is None:
            config.hidden_size = _hidden_size(llm_path)
        self.vision_tower = build_vila_vision_tower(tower_path, config).to(dtype)
        self.mm_projector = build_mm_projector(projector_path, config).to(dtype)
        self.encoders = {name: build_encoder(getattr(config, f"{name}_encoder"), self) for name in ("image", "video")}
        self.post_config()
        self.is_loaded = True

    @classmethod
    def load_pretrained(
        cls, model_path_or_config: str | Path | LlavaConfig, *args: Any, dtype: torch.dtype | None = None, **kwargs: Any
    ) -> Any:
        """The model in a directory (or of that name in the local Hugging Face cache), or of a configuration.

        A configuration has its ``resume_path`` set.
        ``dtype`` overrides the configured one; a keyword ``config`` is ignored, as published; others go to the
        constructor. Raises ExportError for missing or damaged parts, NotImplementedError for any other type.
        """
        kwargs.pop("config", None)
        if isinstance(model_path_or_config, (str, Path)):
            config = LlavaConfig.from_directory(model_directory(model_path_or_config))
        elif isinstance(model_path_or_config, LlavaConfig):
            config = model_path_or_config
        else:
            raise NotImplementedError(f"a path or a LlavaConfig is needed, not {type(model_path_or_config).__name__}")
        if dtype is not None:
            config.model_dtype = str(dtype)
        return cls(config, *args, **kwargs)  # type: ignore[call-arg]

    def save_pretrained(self, output_dir: str | Path, state_dict: dict[str, Tensor] | None = None) -> None:
        """Write ``llm``, ``vision_tower``, ``mm_projector`` and config.json; from ``state_dict`` when it is given.

        The directory is written beside its place and renamed, so an interrupted save leaves what was there.
        """
        save_parts(self, Path(output_dir), state_dict)

    def get_llm(self) -> Any:
        """The causal language model, None before it is installed."""
        llm = getattr(self, "llm", None)
        return llm[0] if isinstance(llm, list) else llm

    def get_lm_head(self) -> nn.Module | None:
        """The decoder's output layer."""
        head: nn.Module | None = getattr(self.get_llm(), "lm_head", None)
        return head

    def get_vision_tower(self) -> VisionTower | None:
        """The vision tower, None without one."""
        tower = getattr(self, "vision_tower", None)
        return tower[0] if isinstance(tower, list) else tower

    def get_mm_projector(self) -> MultimodalProjector | None:
        """The projector, None without one."""
        projector = getattr(self, "mm_projector", None)
        return projector[0] if isinstance(projector, list) else projector

    def post_config(self) -> None:
        """Fill the parts' configurations where they are not set."""
        tower, projector = self.get_vision_tower(), self.get_mm_projector()
        if self.config.vision_tower_cfg is None and tower is not None:
            self.config.vision_tower_cfg = tower.config
        if self.config.mm_projector_cfg is None and projector is not None:
            self.config.mm_projector_cfg = projector.config
        if self.config.llm_cfg is None and self.get_llm() is not None:
            self.config.llm_cfg = self.get_llm().config

    @staticmethod
    def split_chessboard(x: Tensor, num_split_h: int, num_split_w: int) -> Tensor:
        """See ``models.mosaic.split_chessboard``."""
        return mosaic.split_chessboard(x, num_split_h, num_split_w)

    @staticmethod
    def merge_chessboard(x: Tensor, num_split_h: int, num_split_w: int) -> Tensor:
        """See ``models.mosaic.merge_chessboard``."""
        return mosaic.merge_chessboard(x, num_split_h, num_split_w)

    def merge_features_for_dynamic_s2(
        self, image_features: Tensor, block_sizes: Sequence[Block | None]
    ) -> tuple[list[Tensor], list[Block]]:
        """Features [n, N, C] of all tiles -> one map [1, scales * C, H, W] per image, and the blocks it now has.

        ``block_sizes``: (rows, cols) of the last scale per image, or None for an image of one plain tile, whose
        channels are repeated for every scale. Maps of all scales are brought to the size of the scale
        ``config.s2_resize_output_to_scale_idx`` by area interpolation in float32. Raises InputError when the number
        of tiles is not what the blocks need.
        """
        factors = [scale // self._scales[0] for scale in self._scales]
        index = self.config.s2_resize_output_to_scale_idx % len(factors)
        _check_tiles(image_features.shape[0], block_sizes, factors)
        maps, blocks, taken = [], [], 0
        for block in block_sizes:
            if block is None:
                tile = mosaic.merge_chessboard(image_features[taken : taken + 1], 1, 1)
                maps.append(tile.repeat(1, len(factors), 1, 1))
                blocks.append((1, 1))
                taken += 1
                continue
            grids = [(k, k) for k in factors[:-1]] + [(int(block[0]), int(block[1]))]
            of_scales = []
            for rows, cols in grids:
                of_scales.append(mosaic.merge_chessboard(image_features[taken : taken + rows * cols], rows, cols))
                taken += rows * cols
            maps.append(_same_size(of_scales, index))
            blocks.append(grids[index])
        return maps, blocks

    def encode_images(self, images: Tensor, block_sizes: Sequence[Block | None] | None = None) -> Tensor | list[Tensor]:
        """Tiles [n, 3, S, S] -> image tokens: [n, N, D], or with dynamic S² one block [N_i, D] per image.

        With dynamic S² the projector is applied block by block and the tokens of an image are row-major over its whole
        mosaic; blocks of unequal length come as a list. ``block_sizes`` is ignored where dynamic S² is off.
        """
        features = self.vision_tower(images.to(self.vision_tower.dtype))
        assert isinstance(features, Tensor)
        if not self.config.dynamic_s2:
            projected: Tensor = self.mm_projector(features)
            return projected
        if block_sizes is None:
            block_sizes = [None] * images.shape[0]
        maps, blocks = self.merge_features_for_dynamic_s2(features, block_sizes)
        pieces = [mosaic.split_chessboard(m, rows, cols) for m, (rows, cols) in zip(maps, blocks, strict=True)]
        projected = self.mm_projector(torch.cat([piece.flatten(2).transpose(1, 2) for piece in pieces]))
        parts = torch.split(projected, [rows * cols for rows, cols in blocks])
        tokens = [mosaic.flatten_mosaic(part, *block) for part, block in zip(parts, blocks, strict=True)]
        return torch.stack(tokens) if len({len(t) for t in tokens}) == 1 else tokens

    @property
    def _scales(self) -> list[int]:
        scales: list[int] = self.vision_tower.scales  # type: ignore[assignment]
        return scales


def _same_size(maps: Sequence[Tensor], index: int) -> Tensor:
    size = maps[index].shape[-2:]
    resized = [functional.interpolate(m.float(), size=size, mode="area").to(m.dtype) for m in maps]
    return torch.cat(resized, dim=1)


def _check_tiles(got: int, block_sizes: Sequence[Block | None], factors: Sequence[int]) -> None:
    terms: list[int] = []
    for block in block_sizes:
        terms += [1] if block is None else [k * k for k in factors[:-1]] + [int(block[0]) * int(block[1])]
    needed = sum(terms)
    if needed != got:
        listed = " + ".join(str(term) for term in terms)
        raise InputError(
            f"dynamic S² with block sizes {list(block_sizes)} needs {needed} tiles ({listed}), got {got}",
            hint="hand in the tiles of every scale: models.tiling.dynamic_s2_preprocess",
        )


def _hidden_size(llm_path: str) -> int:
    return int(read_json(Path(llm_path) / "config.json")["hidden_size"])
