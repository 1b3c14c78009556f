"""VILA's towers: plain, static S² and dynamic S², chosen by the configuration.

Static S² (Shi et al., "When Do We Not Need Larger Vision Models?") runs one square picture at several sizes and
concatenates the maps. Dynamic S² gets tiles that were already cut (``models.tiling``); the merge is in
``models.nvila``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from models.mosaic import merge_chessboard, split_chessboard
from models.vision_tower import CLIPVisionTower, SiglipVisionTower, VisionTower, tower_class
from models.weights import model_directory
from runtime.errors import ExportError
from runtime.tiling import area_matrix


def parse_scales(value: str | Sequence[int]) -> list[int]:
    """Scales in px, ascending, from "448,896,1344" or from integers."""
    parts = value.split(",") if isinstance(value, str) else value
    return sorted(int(part) for part in parts)


class _Scaled(VisionTower):
    """A tower that knows its scales; ``hidden_size`` is that of the concatenated maps."""

    def __init__(self, vision_tower: str | Path, args: Any, delay_load: bool = False) -> None:
        self._read_scales(args)
        super().__init__(vision_tower, args, delay_load)

    def _read_scales(self, args: Any) -> None:
        # Before nn.Module's own constructor, so through object: only plain attributes are set.
        object.__setattr__(self, "scales", parse_scales(args.s2_scales))
        object.__setattr__(self, "resize_output_to_scale_idx", getattr(args, "s2_resize_output_to_scale_idx", 0) or 0)
        object.__setattr__(self, "max_split_size", getattr(args, "s2_max_split_size", None) or self.scales[0])

    scales: list[int]
    resize_output_to_scale_idx: int
    max_split_size: int

    def load_model(self) -> None:
        super().load_model()
        self._check_pieces()
        side = self.processed_side
        size = {"height": side, "width": side}
        self.image_processor.size = size
        if getattr(self.image_processor, "crop_size", None) is not None:
            self.image_processor.crop_size = size

    def _check_pieces(self) -> None:
        """What reaches the tower must be of its own size, and the chosen scale must exist."""
        taken, count = int(self.config.image_size), len(self.scales)
        for scale, piece in self._pieces().items():
            if piece != taken:
                raise ExportError(
                    f"s2_scales {self.scales}: {scale} px is cut into pieces of {piece:g} px, the tower takes {taken}",
                    hint=f"scales that are multiples of {taken}",
                )
        if not -count <= self.resize_output_to_scale_idx < count:
            raise ExportError(
                f"s2_resize_output_to_scale_idx is {self.resize_output_to_scale_idx} for {count} scales",
                hint=f"from {-count} to {count - 1}",
            )

    def _pieces(self) -> dict[int, float]:
        """Side in px of the squares that each scale, given in px, reaches the tower in."""
        return {scale: self.scales[0] if scale % self.scales[0] == 0 else scale for scale in self.scales}

    @property
    def processed_side(self) -> int:
        """Side in px of the square that the image processor makes."""
        return self.scales[0]

    @property
    def hidden_size(self) -> int:
        return int(self.config.hidden_size) * len(self.scales)


class _DynamicS2(_Scaled):
    """Takes tiles of ``scales[0]`` px; a batch only, as the merge counts tiles."""

    def forward(self, images: Tensor | list[Tensor]) -> Tensor | list[Tensor]:
        assert isinstance(images, Tensor), "a dynamic-S² tower takes a batch of tiles, not a list"
        return super().forward(images)


class _StaticS2(_Scaled):
    """Takes square pictures of ``scales[-1]`` px; the features of all scales lie side by side on one map."""

    @property
    def processed_side(self) -> int:
        return self.scales[-1]

    @property
    def num_patches_per_side(self) -> int:
        """Of the map that comes out, the one of ``resize_output_to_scale_idx``."""
        side = self.scales[self.resize_output_to_scale_idx]
        return self._splits(side) * super().num_patches_per_side

    @torch.no_grad()
    def features(self, tiles: Tensor) -> Tensor:
        """[B, 3, S, S] -> [B, N, D * scales]; maps are brought to the size of ``resize_output_to_scale_idx`` by
        area.

        The pieces of all scales go through the tower together, so that a traced graph holds it once.
        """
        boards = [split_chessboard(_bicubic(tiles, side), *[self._splits(side)] * 2) for side in self.scales]
        found = super().features(torch.cat(boards))
        if self.select_feature == "cls_patch":
            found = found[:, self.class_tokens :]  # a class token has no place on a map
        maps, taken = [], 0
        for board, side in zip(boards, self.scales, strict=True):
            pieces = found[taken : taken + board.shape[0]]
            maps.append(merge_chessboard(pieces, *[self._splits(side)] * 2))
            taken = taken + board.shape[0]
        size = self.num_patches_per_side
        return torch.cat([_averaged(m, size) for m in maps], dim=1).flatten(2).transpose(1, 2)

    def _pieces(self) -> dict[int, float]:
        return {scale: scale / self._splits(scale) for scale in self.scales}

    def _splits(self, side: int) -> int:
        """Pieces along one side of the picture at ``side`` px."""
        return math.ceil(side / self.max_split_size)


def _bicubic(pictures: Tensor, side: int) -> Tensor:
    """Resized as published: torch's bicubic in float32, corners not aligned, no antialiasing."""
    if pictures.shape[-1] == side:
        return pictures
    return functional.interpolate(pictures.float(), size=(side, side), mode="bicubic").to(pictures.dtype)


def _averaged(feature_map: Tensor, size: int) -> Tensor:
    """[B, C, h, h] -> [B, C, size, size]: ``interpolate(mode="area")`` in float32, as two products."""
    side = feature_map.shape[-1]
    if side == size:
        return feature_map
    area = torch.from_numpy(area_matrix(size, side)).to(feature_map.device)
    return (area @ feature_map.float() @ area.T).to(feature_map.dtype)


class SiglipVisionTowerS2(_StaticS2, SiglipVisionTower):
    """SigLIP with static S²."""


class SiglipVisionTowerDynamicS2(_DynamicS2, SiglipVisionTower):
    """SigLIP with dynamic S²."""


class CLIPVisionTowerS2(_StaticS2, CLIPVisionTower):
    """CLIP with static S²; the class token is dropped."""


class CLIPVisionTowerDynamicS2(_DynamicS2, CLIPVisionTower):
    """CLIP with dynamic S²; the class token is dropped."""

    def feature_select(self, image_forward_outs: Any) -> Tensor:
        features = super().feature_select(image_forward_outs)
        return features[:, self.class_tokens :] if self.select_feature == "cls_patch" else features


def build_vila_vision_tower(model_name_or_path: str | Path, config: Any) -> VisionTower:
    """VILA's tower from a directory; sets ``config.mm_hidden_size`` to the width of its features.

    ``config.dynamic_s2`` and ``config.s2`` choose the variant. Raises ExportError for a missing directory when
    ``config.resume_path`` is set, and for an unknown architecture.
    """
    if getattr(config, "resume_path", None) and not Path(model_name_or_path).is_dir():
        raise ExportError(
            f"no vision tower at {model_name_or_path}", hint="resume_path is set, so weights are expected there"
        )
    if getattr(config, "ps3", False):
        raise ExportError("PS3 towers are not supported", hint="use a checkpoint with ps3 false")
    directory = model_directory(model_name_or_path)
    base = tower_class(directory)
    tower = _variant(base, config)(directory, config)
    config.mm_hidden_size = tower.feature_size
    return tower


def _variant(base: type[VisionTower], config: Any) -> type[VisionTower]:
    siglip = base is SiglipVisionTower
    if getattr(config, "dynamic_s2", False):
        return SiglipVisionTowerDynamicS2 if siglip else CLIPVisionTowerDynamicS2
    if getattr(config, "s2", False):
        return SiglipVisionTowerS2 if siglip else CLIPVisionTowerS2
    return base
