"""VILA and NVILA: the folders ``llm/ vision_tower/ mm_projector/`` below one config.json."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from export.image_processor import ImageProcessor, read_image_processor
from export.layouts.description import Checkpoint, PromptConvention
from export.layouts.encoders import encoder_texts
from export.layouts.reading import (
    COPY,
    DEFAULT_VIDEO_FRAMES,
    TowerConfig,
    added_tokens,
    check_identity,
    count,
    is_mlp,
    layer_count,
    one_tile,
    read_config,
    set_side,
    setting_files,
    weight_paths,
)
from models.chat_templates import default_template, named_template
from runtime.bundle.manifest import TileMode, TilingSection
from runtime.errors import ExportError

PARTS = ("llm", "vision_tower", "mm_projector")
# Side of the patch square that a projector folds into one token.
DOWNSAMPLE = {
    "mlp_downsample": 2,
    "mlp_downsample_2x2_fix": 2,
    "mlp_downsample_3x3_fix": 3,
    "mlp_downsample_3x3_s2": 3,
    "mlp_downsample_3x3_s2_new": 3,
}


@dataclass(frozen=True, slots=True)
class _Sight:
    """What the tower's graph takes and gives: sides of its input in px and of its output in patches.

    ``scales`` are those of dynamic S², ``repeats`` how often a plain tile's channels are repeated for the projector,
    ``maps`` how many maps static S² lays side by side.
    """

    tile_px: int
    patches_per_side: int
    scales: tuple[int, ...] = ()
    scale_index: int = 0
    maps: int = 1
    repeats: int = 1


def read_vila(root: Path, config: dict[str, Any]) -> Checkpoint:
    """Reads and checks ``root``, whose config.json is ``config``. Raises ExportError that names file, key and value."""
    where, folder = root / "config.json", root / "vision_tower"
    if config.get("ps3"):
        raise ExportError(f"{where}: PS3 towers cannot be exported", hint="use a checkpoint with ps3 false")
    tower = TowerConfig(folder / "config.json", read_config(folder / "config.json"))
    kind = _projector_type(root / "mm_projector" / "config.json")
    sight, processor = _sight(where, config, tower, folder)
    mode = _mode(config, sight, processor)
    multi_scale = bool(config.get("dynamic_s2") or config.get("s2"))
    keeps_class = config.get("mm_vision_select_feature", "patch") == "cls_patch" and not multi_scale
    channels = tower.hidden * layer_count(config.get("mm_vision_select_layer")) * sight.maps
    if kind == "identity":
        hidden = read_config(root / "llm" / "config.json").get("hidden_size")
        check_identity(root / "mm_projector", channels * max(len(sight.scales), sight.repeats), hidden)
    vision = (folder, root / "mm_projector")
    weights = tuple(path for part in (root / "llm", *vision) for path in weight_paths(part))
    return Checkpoint(
        root=root,
        layout="vila",
        family="nvila",
        tower=folder,
        patches_per_tile=sight.patches_per_side**2 + (tower.class_tokens if keeps_class else 0),
        channels=channels,
        repeats=sight.repeats,
        preprocess=processor.preprocess(mode),
        tiling=_tiling(where, config, sight, mode, DOWNSAMPLE.get(kind, 1)),
        prompt=_prompt(root, config, mode),
        vision_files=(where, *(path for part in vision for path in (part / "config.json", *weight_paths(part)))),
        files=(*setting_files([root, root / "llm", *vision]), *weights),
    )


def _prompt(root: Path, config: Mapping[str, Any], mode: TileMode) -> PromptConvention:
    where, named = root / "config.json", config.get("chat_template")
    start, end = encoder_texts(where, config)
    decoder = str(read_config(root / "llm" / "config.json").get("model_type"))
    return PromptConvention(
        folders=(root / "llm", root),
        image_token_id=None,
        text_after="\n" if mode == "dynamic" else "",
        each_tile=mode == "dynamic",
        start_text=start,
        end_text=end,
        video_as_pictures=False,
        template=None if named is None else named_template(str(named)),
        default_template=default_template(decoder, added_tokens(root / "llm") if decoder == "llama" else ()),
    )


def _sight(where: Path, config: Mapping[str, Any], tower: TowerConfig, folder: Path) -> tuple[_Sight, ImageProcessor]:
    """The tower's graph, and the image processor as the tower sets it."""
    processor = read_image_processor(folder)
    if config.get("dynamic_s2"):
        scales = _scales(where, config)
        if scales[0] != tower.tile_px:
            raise ExportError(f"{where}: s2_scales begin with {scales[0]} px, the tower takes {tower.tile_px} px")
        if any(scale % scales[0] for scale in scales):
            raise ExportError(f"{where}: s2_scales {scales} are not multiples of {scales[0]} px", hint=COPY)
        index, shown = _scale_index(where, config, scales), "dynamic_s2" in (config.get("image_aspect_ratio") or "")
        plain = _Sight(tower.tile_px, tower.patches_per_side, repeats=len(scales))
        sight = replace(plain, scales=scales, scale_index=index, repeats=1) if shown else plain
        return sight, set_side(processor, tower.tile_px)
    if config.get("s2"):
        sight = _static(where, config, tower)
        return sight, set_side(processor, sight.tile_px)
    tower.check_side(processor.tile_px, folder)
    return _Sight(tower.tile_px, tower.patches_per_side), processor


def _static(where: Path, config: Mapping[str, Any], tower: TowerConfig) -> _Sight:
    """Static S²: the graph takes the largest scale and cuts it into pieces of the tower's size by itself."""
    scales = _scales(where, config)
    limit = count(where, config, "s2_max_split_size", scales[0])
    splits = [math.ceil(scale / limit) for scale in scales]
    for scale, pieces in zip(scales, splits, strict=True):
        if scale != pieces * tower.tile_px:
            raise ExportError(
                f"{where}: {scale} px of s2_scales cut into {pieces} pieces a side, the tower takes {tower.tile_px} px",
                hint=f"scales that are multiples of {tower.tile_px} with s2_max_split_size {tower.tile_px}",
            )
    side = splits[_scale_index(where, config, scales)] * tower.patches_per_side
    return _Sight(scales[-1], side, maps=len(scales))


def _scale_index(where: Path, config: Mapping[str, Any], scales: tuple[int, ...]) -> int:
    index = config.get("s2_resize_output_to_scale_idx") or 0
    if type(index) is not int or not -len(scales) <= index < len(scales):
        raise ExportError(f"{where}: s2_resize_output_to_scale_idx is {index!r} for {len(scales)} scales", hint=COPY)
    return index


def _scales(where: Path, config: Mapping[str, Any]) -> tuple[int, ...]:
    text = config.get("s2_scales")
    parts = text if isinstance(text, list) else str(text).split(",")
    try:
        scales = tuple(sorted(int(part) for part in parts))
    except (ValueError, TypeError) as problem:
        raise ExportError(f"{where}: s2_scales is {text!r}, expected sizes such as '448,896'", hint=COPY) from problem
    if len(set(scales)) != len(scales) or not 1 <= scales[0] <= scales[-1] <= 4096:
        raise ExportError(f"{where}: s2_scales is {text!r}, expected different sizes from 1 to 4096 px", hint=COPY)
    return scales


def _mode(config: Mapping[str, Any], sight: _Sight, processor: ImageProcessor) -> TileMode:
    """How a picture becomes tiles; a setting that VILA does not know leaves it to the image processor."""
    aspect = config.get("image_aspect_ratio") or "resize"
    if sight.scales:
        return "dynamic_s2"
    if "dynamic" in aspect:
        return "dynamic"
    modes: dict[Any, TileMode] = {"resize": "resize", "pad": "pad"}
    return modes.get(aspect, processor.mode)


def _tiling(where: Path, config: Mapping[str, Any], sight: _Sight, mode: TileMode, downsample: int) -> TilingSection:
    least = count(where, config, "min_tiles", 1)
    most = count(where, config, "max_tiles", 12)
    if most < least:
        raise ExportError(f"{where}: max_tiles is {most}, below min_tiles {least}", hint=COPY)
    return replace(
        one_tile(sight.tile_px, sight.patches_per_side),
        min_tiles=least,
        max_tiles=most,
        use_thumbnail=mode == "dynamic",
        scales_px=sight.scales,
        resize_output_to_scale_idx=sight.scale_index,
        downsample=downsample,
        tile_all=bool(config.get("tile_all", False)),
        video_frames=count(where, config, "num_video_frames", DEFAULT_VIDEO_FRAMES),
    )


def _projector_type(path: Path) -> str:
    kind = read_config(path).get("mm_projector_type")
    if kind not in ("linear", "identity", *DOWNSAMPLE) and not is_mlp(kind):
        known = ", ".join(["linear", "identity", "mlp{N}x_gelu", *DOWNSAMPLE])
        raise ExportError(f"{path}: mm_projector_type is {kind!r}", hint=f"one of {known}")
    return str(kind)
