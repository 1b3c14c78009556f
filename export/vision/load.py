"""Tower and projector of a checkpoint as torch modules, without its decoder. Imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torch import nn

from export.checkpoint import Checkpoint
from models.checkpoint import rename_hf_llava
from models.mosaic import MosaicProjector
from models.nvila_config import LlavaConfig
from models.projector import build_mm_projector, build_vision_projector
from models.s2_tower import build_vila_vision_tower
from models.vision_tower import VisionTower, tower_class_named
from models.weights import load_strict, read_json


@dataclass(frozen=True)
class VisionModules:
    """The two modules that are traced, fp32, in evaluation mode."""

    tower: VisionTower
    projector: MosaicProjector


def load_vision(checkpoint: Checkpoint) -> VisionModules:
    """Reads the weights of tower and projector alone. Raises ExportError, ValueError (unknown projector type)."""
    load = _load_vila if checkpoint.family == "nvila" else _load_llava
    tower, projector = load(checkpoint.root)
    inner: Any = tower.vision_tower
    inner.set_attn_implementation("eager")  # fewer nodes than the fused operator's decomposition
    mosaic = MosaicProjector(projector, checkpoint.tiling.patches_per_side)
    return VisionModules(tower.float().eval(), mosaic.float().eval())


def _load_vila(root: Path) -> tuple[VisionTower, nn.Module]:
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


def _load_llava(root: Path) -> tuple[VisionTower, nn.Module]:
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
    load_strict(holder, root, named="vision tower and projector", rename=_vision_name)
    return tower, projector


def _vision_name(name: str) -> str | None:
    renamed = rename_hf_llava(name) or ""
    inside = renamed.removeprefix("model.")
    return inside if inside.startswith(("vision_tower.", "mm_projector.")) else None
