"""LLaVA as its authors publish it: ``LlavaLlamaForCausalLM``, one folder, the CLIP tower in another one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from export.decoder.weight_files import WeightFiles
from export.image_processor import read_image_processor
from export.layouts.description import Checkpoint, PromptConvention
from export.layouts.reading import (
    TowerConfig,
    added_tokens,
    check_identity,
    is_mlp,
    layer_count,
    one_tile,
    read_config,
    setting_files,
    weight_paths,
)
from models.chat_templates import VICUNA_V1
from runtime.errors import ExportError

PROJECTORS = ("linear", "mlp{N}x_gelu", "identity", "linearclip")
TOWER = "model.vision_tower.vision_tower."
RANGE = ("model.mm_projector.1.min", "model.mm_projector.1.max")
# Kept apart by the published code: a picture as one padded or squeezed square.
_ASPECTS = (None, "", "square", "pad")
_FEATURES = {"patch": 0, "cls_patch": 1}
_START, _END = "<im_start>", "<im_end>"


def read_llava_original(root: Path, config: dict[str, Any]) -> Checkpoint:
    """Reads and checks ``root``, whose config.json is ``config``. Raises ExportError that names file, key and value."""
    where = root / "config.json"
    _refuse_unknown(where, config)
    kind = projector_type(where, config)
    folder = tower_folder(root, config)
    tower = _clip(folder)
    processor = read_image_processor(folder)
    tower.check_side(processor.tile_px, folder)
    mode = "pad" if config.get("image_aspect_ratio") == "pad" else processor.mode
    channels = tower.hidden * layer_count(config["mm_vision_select_layer"])
    if kind == "identity":
        check_identity(where, channels, config.get("hidden_size"))
    class_tokens = _FEATURES[config.get("mm_vision_select_feature", "patch")]
    marked = _marked(root, config)
    weights, apart = weight_paths(root), () if tower_among_weights(root) else weight_paths(folder)
    seen = (folder / "config.json", *apart)
    limits = (range_file(root, config),) if kind == "linearclip" and not range_among_weights(root) else ()
    return Checkpoint(
        root=root,
        layout="llava-original",
        family="llava",
        tower=folder,
        patches_per_tile=tower.patches_per_side**2 + class_tokens,
        channels=channels,
        repeats=1,
        preprocess=processor.preprocess(mode),
        tiling=one_tile(tower.tile_px, tower.patches_per_side),
        prompt=PromptConvention(
            folders=(root,),
            image_token_id=None,
            text_after="\n",
            each_tile=False,
            start_text=_START if marked else "",
            end_text=_END if marked else "",
            video_as_pictures=True,
            default_template=VICUNA_V1,
        ),
        vision_files=(where, *seen, *limits, *weights),
        files=(*setting_files([root, folder]), *seen, *limits, *weights),
    )


def _refuse_unknown(where: Path, config: dict[str, Any]) -> None:
    aspect, layer = config.get("image_aspect_ratio"), config.get("mm_vision_select_layer")
    feature = config.get("mm_vision_select_feature", "patch")
    if aspect not in _ASPECTS:
        raise ExportError(f"{where}: image_aspect_ratio is {aspect!r}", hint="pad and square pictures can be exported")
    for key in ("s2", "dynamic_s2"):
        if config.get(key):
            raise ExportError(f"{where}: {key} with LLaVA's own layout", hint="S² is served in VILA's three folders")
    if feature not in _FEATURES:
        raise ExportError(f"{where}: mm_vision_select_feature is {feature!r}", hint="patch or cls_patch")
    if type(layer) is not int and not (isinstance(layer, list) and layer and all(type(item) is int for item in layer)):
        raise ExportError(f"{where}: mm_vision_select_layer is {layer!r}", hint="a hidden state's index, usually -2")


def _marked(root: Path, config: dict[str, Any]) -> bool:
    """Whether each picture stands between <im_start> and <im_end>, which the tokenizer must then have."""
    if not config.get("mm_use_im_start_end"):
        return False
    for token in (_START, _END):
        if token not in added_tokens(root):
            raise ExportError(
                f"{root}: mm_use_im_start_end is set and the tokenizer has no token {token}",
                hint="copy the tokenizer's files again, added_tokens.json included",
            )
    return True


def projector_type(where: Path, config: dict[str, Any]) -> str:
    """``mm_projector_type``, by default linear. Raises ExportError for one that LLaVA does not have."""
    kind = config.get("mm_projector_type", "linear")
    if kind not in PROJECTORS and not is_mlp(kind):
        raise ExportError(f"{where}: mm_projector_type is {kind!r}", hint="one of " + ", ".join(PROJECTORS))
    return str(kind)


def tower_folder(root: Path, config: dict[str, Any]) -> Path:
    """Where the tower lies: inside the checkpoint, at the path that the configuration names, or in the local cache."""
    name = config.get("mm_vision_tower") or config.get("vision_tower")
    if not isinstance(name, str):
        raise ExportError(f"{root / 'config.json'}: mm_vision_tower is {name!r}", hint="name the CLIP tower's folder")
    for candidate in (name, "vision_tower", Path(name).name):
        if (root / candidate / "config.json").is_file():
            return root / candidate
    return Path(name) if Path(name).is_dir() else _cached(name, root)


def _cached(name: str, root: Path) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError) as problem:
        raise ExportError(
            f"{root / 'config.json'}: the vision tower {name} is no folder and not in the local Hugging Face cache",
            hint=f"hf download {name}, or put it beside the weights, as {root / Path(name).name}",
        ) from problem


def _clip(folder: Path) -> TowerConfig:
    path = folder / "config.json"
    tower = TowerConfig(path, read_config(path))
    if not tower.class_tokens:
        raise ExportError(f"{path}: a SigLIP tower with LLaVA's own layout", hint="CLIP towers can be exported with it")
    return tower


def tower_among_weights(root: Path) -> bool:
    """Whether the checkpoint's weights hold the tower too, as they do when it was trained."""
    with WeightFiles(root) as files:
        return any(name.startswith(TOWER) for name in files.names())


def range_among_weights(root: Path) -> bool:
    """Whether the checkpoint's weights hold linearclip's range, as a saved state dict does."""
    with WeightFiles(root) as files:
        return all(name in files for name in RANGE)


def range_file(root: Path, config: dict[str, Any]) -> Path:
    """The safetensors file with ``min`` and ``max``. Raises ExportError when it is missing or of another format."""
    named = str(config.get("min_max_range_path") or "emb_min_max.safetensors")
    for place in (root / named, root / Path(named).name):
        path = place.with_suffix(".safetensors")
        if path.is_file():
            return path
    raise ExportError(
        f"{root}: neither {RANGE[0]} nor the range file {named!r} of linearclip as safetensors is there",
        hint=f"python -m export.convert {root} --out <directory>",
    )
