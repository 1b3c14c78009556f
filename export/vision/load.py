"""Tower and projector of a checkpoint as torch modules, without its decoder. Imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from export.checkpoint import Checkpoint
from export.layouts.llava_original import projector_type, range_among_weights, range_file, tower_among_weights
from models.checkpoint import rename_hf_llava, rename_original_llava
from models.mosaic import MosaicProjector
from models.nvila_config import LlavaConfig
from models.projector import RangeClip, build_mm_projector, build_vision_projector, read_range
from models.s2_tower import build_vila_vision_tower
from models.vision_tower import CLIPVisionTower, VisionTower, tower_class_named
from models.weights import load_strict, read_config, read_json


@dataclass(frozen=True)
class VisionModules:
    """The two modules that are traced, fp32, in evaluation mode."""

    tower: VisionTower
    projector: MosaicProjector


def load_vision(checkpoint: Checkpoint) -> VisionModules:
    """Reads the weights of tower and projector alone. Raises ExportError, ValueError (unknown projector type)."""
    load = {"vila": _load_vila, "llava-hf": _load_llava_hf, "llava-original": _load_llava_original}[checkpoint.layout]
    tower, projector = load(checkpoint)
    if checkpoint.repeats > 1:
        projector = nn.Sequential(_Repeated(checkpoint.repeats), projector)
    inner: Any = tower.vision_tower
    inner.set_attn_implementation("eager")  # fewer nodes than the fused operator's decomposition
    mosaic = MosaicProjector(projector, checkpoint.tiling.patches_per_side)
    return VisionModules(tower.float().eval(), mosaic.float().eval())


class _Repeated(nn.Module):
    """The channels of a plain tile once for each scale of dynamic S²."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self._times = times

    def forward(self, features: Tensor) -> Tensor:
        return torch.cat([features] * self._times, dim=-1)


def _load_vila(checkpoint: Checkpoint) -> tuple[VisionTower, nn.Module]:
    root = checkpoint.root
    config = LlavaConfig.from_directory(root)
    tower = build_vila_vision_tower(root / "vision_tower", config)
    if not config.hidden_size:
        config.hidden_size = read_json(root / "llm" / "config.json")["hidden_size"]
    return tower, build_mm_projector(root / "mm_projector", config)


class _Holder(nn.Module):
    """Names the two modules as the checkpoint does, so that its weights find them."""

    def __init__(self, tower: VisionTower, projector: nn.Module) -> None:
        super().__init__()
        self.vision_tower, self.mm_projector = tower, projector


def _load_llava_hf(checkpoint: Checkpoint) -> tuple[VisionTower, nn.Module]:
    root = checkpoint.root
    config = read_json(root / "config.json")
    described: dict[str, Any] = config["vision_config"]
    strategy = config.get("vision_feature_select_strategy", "default")
    layer = config.get("vision_feature_layer", -2)
    args = SimpleNamespace(
        mm_vision_select_layer=layer, mm_vision_select_feature={"default": "patch", "full": "cls_patch"}[strategy]
    )
    kind = tower_class_named(str(described.get("model_type", "clip_vision_model")), root)
    tower = kind.from_config(kind.config_class(**described), args)
    projector = build_vision_projector(
        SimpleNamespace(
            mm_projector_type="mlp2x_gelu",
            mm_hidden_size=tower.feature_size,
            hidden_size=config["text_config"].get("hidden_size", 4096),
        )
    )
    holder = _Holder(tower, projector)
    load_strict(holder, root, named="vision tower and projector", rename=_hf_name)
    return tower, projector


def _load_llava_original(checkpoint: Checkpoint) -> tuple[VisionTower, nn.Module]:
    """The tower of its own folder, or a trained one among the checkpoint's weights, as the projector always is."""
    root = checkpoint.root
    config = read_json(root / "config.json")
    select = SimpleNamespace(
        mm_vision_select_layer=config["mm_vision_select_layer"],
        mm_vision_select_feature=config.get("mm_vision_select_feature", "patch"),
    )
    inside = tower_among_weights(root)
    if inside:
        shape = read_config(checkpoint.tower, CLIPVisionTower.config_class)
        tower: VisionTower = CLIPVisionTower.from_config(shape, select)
    else:
        tower = CLIPVisionTower(checkpoint.tower, select)
    projector, may_lack = _original_projector(root, config, tower.feature_size)
    holder = _Holder(tower, projector)
    if not inside:
        may_lack |= {name for name in holder.state_dict() if name.startswith("vision_tower.")}
    load_strict(holder, root, named="vision tower and projector", rename=_original_name, may_lack=may_lack)
    return tower, projector


def _original_projector(root: Path, config: dict[str, Any], width: int) -> tuple[nn.Module, frozenset[str]]:
    """The projector, and which of its tensors the weights may lack: linearclip's range, where a file has it."""
    kind, hidden = projector_type(root / "config.json", config), int(config.get("hidden_size", 4096))
    if kind != "linearclip":
        sizes = SimpleNamespace(mm_projector_type=kind, mm_hidden_size=width, hidden_size=hidden)
        return build_vision_projector(sizes), frozenset()
    if range_among_weights(root):
        return nn.Sequential(nn.Linear(width, hidden), RangeClip(torch.zeros(hidden), torch.zeros(hidden))), frozenset()
    clip = RangeClip(*read_range(range_file(root, config)))
    return nn.Sequential(nn.Linear(width, hidden), clip), frozenset({"mm_projector.1.min", "mm_projector.1.max"})


def _hf_name(name: str) -> str | None:
    renamed = rename_hf_llava(name) or ""
    inside = renamed.removeprefix("model.")
    return inside if inside.startswith(("vision_tower.", "mm_projector.")) else None


def _original_name(name: str) -> str | None:
    renamed = rename_original_llava(name) or ""
    inside = renamed.removeprefix("model.")
    return inside if inside.startswith(("vision_tower.", "mm_projector.")) else None
