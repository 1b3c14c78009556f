"""LLaVA as transformers writes it: one folder, ``LlavaForConditionalGeneration``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from export.image_processor import read_image_processor
from export.layouts.description import Checkpoint, PromptConvention
from export.layouts.reading import TowerConfig, layer_count, one_tile, setting_files, weight_paths
from models.chat_templates import VICUNA_V1
from runtime.errors import ExportError


def read_llava_hf(root: Path, config: dict[str, Any]) -> Checkpoint:
    """Reads and checks ``root``, whose config.json is ``config``. Raises ExportError that names file, key and value."""
    where = root / "config.json"
    _check_projector(where, config)
    tower = TowerConfig(where, config.get("vision_config"))
    strategy = config.get("vision_feature_select_strategy", "default")
    if strategy not in ("default", "full"):
        raise ExportError(f"{where}: vision_feature_select_strategy is {strategy!r}", hint="default or full")
    class_tokens = tower.class_tokens if strategy == "full" else 0
    processor = read_image_processor(root)
    tower.check_side(processor.tile_px, root)
    weights = weight_paths(root)
    image_id = config.get("image_token_id", config.get("image_token_index"))
    return Checkpoint(
        root=root,
        layout="llava-hf",
        family="llava",
        tower=root,
        patches_per_tile=tower.patches_per_side**2 + class_tokens,
        channels=tower.hidden * layer_count(config.get("vision_feature_layer", -2)),
        repeats=1,
        preprocess=processor.preprocess(processor.mode),
        tiling=one_tile(tower.tile_px, tower.patches_per_side),
        prompt=PromptConvention(
            folders=(root,),
            image_token_id=image_id if type(image_id) is int else None,
            text_after="\n",
            each_tile=False,
            start_text="",
            end_text="",
            video_as_pictures=True,
            default_template=VICUNA_V1,
        ),
        vision_files=(where, *weights),
        files=(*setting_files([root]), *weights),
    )


def _check_projector(where: Path, config: dict[str, Any]) -> None:
    activation, bias = config.get("projector_hidden_act", "gelu"), config.get("multimodal_projector_bias", True)
    if activation != "gelu" or bias is not True:
        raise ExportError(
            f"{where}: projector with {activation!r} and bias {bias!r}",
            hint="two linear layers with bias and GELU between them can be exported",
        )
