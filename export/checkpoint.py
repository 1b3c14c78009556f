"""What a checkpoint is: its layout, how it sees pictures, how it is prompted, and a digest of its files. Torch-free.

Two layouts: LLaVA as transformers writes it (one folder), and VILA's folders ``llm/ vision_tower/ mm_projector/``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.decoder.weight_files import WeightFiles
from export.image_processor import read_image_processor
from runtime.bundle import sha256_file
from runtime.bundle.manifest import Family, PreprocessSpec, TilingSection
from runtime.bundle.strict_json import read_json
from runtime.errors import ExportError

MAX_CONFIG_BYTES = 4 << 20
DEFAULT_VIDEO_FRAMES = 8
_COPY = "copy or download the checkpoint again"
_SUPPORTED = "LlavaForConditionalGeneration and VILA's llm/ vision_tower/ mm_projector/ folders can be exported"
# Side of the patch square that a projector folds into one token.
_DOWNSAMPLE = {
    "mlp_downsample": 2,
    "mlp_downsample_2x2_fix": 2,
    "mlp_downsample_3x3_fix": 3,
    "mlp_downsample_3x3_s2": 3,
    "mlp_downsample_3x3_s2_new": 3,
}
_SETTINGS = ("config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json")
_TEXTS = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.json")


@dataclass(frozen=True, slots=True)
class PromptConvention:
    """How the family writes prompts (see `export.prompt_export.PromptRequest`)."""

    folders: tuple[Path, ...]
    image_token_id: int | None
    text_after: str
    each_tile: bool
    start_text: str
    end_text: str
    video_as_pictures: bool


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint folder that was read and checked, weights apart.

    ``vision_files`` (weights and configurations) decide the vision graphs, ``files`` everything about a bundle.
    """

    root: Path
    family: Family
    patches_per_tile: int
    channels: int
    preprocess: PreprocessSpec
    tiling: TilingSection
    prompt: PromptConvention
    vision_files: tuple[Path, ...]
    files: tuple[Path, ...]

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.root.resolve().name


def read_checkpoint(root: Path) -> Checkpoint:
    """Reads configurations and the headers of weight files. Raises ExportError that names file, key and value."""
    if not root.is_dir():
        raise ExportError(f"{root}: no such folder", hint="name the folder that holds config.json")
    config = _read(root / "config.json")
    architecture = (config.get("architectures") or [config.get("model_type")])[0]
    parts = ("llm", "vision_tower", "mm_projector")
    three_folders = all((root / part).is_dir() for part in parts) or "llm_cfg" in config
    # Releases name their top class in many ways (LlavaLlamaModel, VILAForCausalLM, NVILAQwen2), none at all included.
    if three_folders and (architecture is None or str(architecture).lower().startswith(("llava", "vila", "nvila"))):
        for part in parts:
            if not (root / part).is_dir():
                raise ExportError(f"{root / part}: this folder of the checkpoint is missing", hint=_COPY)
        return _read_vila(root, config)
    if architecture in ("LlavaForConditionalGeneration", "llava") and "text_config" in config:
        return _read_llava(root, config)
    raise ExportError(f"{root / 'config.json'}: unknown architecture {architecture!r}", hint=_SUPPORTED)


def digest_files(root: Path, files: Iterable[Path], progress: Callable[[Path], None] | None = None) -> str:
    """SHA-256 over names and contents of files, independent of their order and of where the checkpoint lies."""
    whole = hashlib.sha256()
    for path in sorted(set(files)):
        if progress:
            progress(path)
        try:
            digest = sha256_file(path)
        except OSError as problem:
            raise ExportError(f"{path}: cannot be read: {problem.strerror}", hint=_COPY) from problem
        whole.update(f"{path.relative_to(root).as_posix()}\0{digest}\n".encode())
    return whole.hexdigest()


def _read(path: Path) -> dict[str, Any]:
    value = read_json(path, max_bytes=MAX_CONFIG_BYTES, error=ExportError, hint=_COPY)
    if not isinstance(value, dict):
        raise ExportError(f"{path}: expected an object", hint=_COPY)
    return value


def _weights(folder: Path) -> tuple[Path, ...]:
    with WeightFiles(folder) as files:
        return files.paths


def _present(folders: Iterable[Path], names: Iterable[str]) -> tuple[Path, ...]:
    wanted = list(names)
    return tuple(folder / name for folder in folders for name in wanted if (folder / name).is_file())


def _read_llava(root: Path, config: dict[str, Any]) -> Checkpoint:
    where = root / "config.json"
    if (
        config.get("projector_hidden_act", "gelu") != "gelu"
        or config.get("multimodal_projector_bias", True) is not True
    ):
        raise ExportError(
            f"{where}: projector with {config.get('projector_hidden_act')!r} and "
            f"bias {config.get('multimodal_projector_bias')!r}",
            hint="two linear layers with bias and GELU between them can be exported",
        )
    tower = _Tower(where, config.get("vision_config"))
    layer = config.get("vision_feature_layer", -2)
    strategy = config.get("vision_feature_select_strategy", "default")
    if strategy not in ("default", "full"):
        raise ExportError(f"{where}: vision_feature_select_strategy is {strategy!r}", hint="default or full")
    class_tokens = tower.class_tokens if strategy == "full" else 0
    processor = read_image_processor(root)
    tower.check_side(processor.tile_px, root)
    mode = "pad" if config.get("image_aspect_ratio") == "pad" else processor.mode
    weights = _weights(root)
    image_id = config.get("image_token_id", config.get("image_token_index"))
    return Checkpoint(
        root=root,
        family="llava",
        patches_per_tile=tower.patches_per_side**2 + class_tokens,
        channels=tower.hidden * (len(layer) if isinstance(layer, list) else 1),
        preprocess=processor.preprocess(mode),
        tiling=TilingSection(
            tile_px=tower.tile_px,
            patches_per_side=tower.patches_per_side,
            min_tiles=1,
            max_tiles=1,
            use_thumbnail=False,
            scales_px=(),
            resize_output_to_scale_idx=0,
            downsample=1,
            tile_all=False,
            video_frames=DEFAULT_VIDEO_FRAMES,
        ),
        prompt=PromptConvention(
            folders=(root,),
            image_token_id=image_id if type(image_id) is int else None,
            text_after="\n",
            each_tile=False,
            start_text="",
            end_text="",
            video_as_pictures=True,
        ),
        vision_files=(where, *weights),
        files=(*_present([root], [*_SETTINGS, *_TEXTS, "chat_template.jinja"]), *weights),
    )


def _read_vila(root: Path, config: dict[str, Any]) -> Checkpoint:
    where = root / "config.json"
    if config.get("s2") and not config.get("dynamic_s2"):
        raise ExportError(f"{where}: static S² (s2) cannot be exported", hint="dynamic_s2 and single-scale towers can")
    if config.get("ps3"):
        raise ExportError(f"{where}: PS3 towers cannot be exported", hint="use a checkpoint with ps3 false")
    tower = _Tower(root / "vision_tower" / "config.json", _read(root / "vision_tower" / "config.json"))
    downsample = _downsample(root / "mm_projector" / "config.json")
    processor = read_image_processor(root / "vision_tower")
    preprocess, tiling = _vila_tiling(where, config, tower, downsample)
    if tiling.scales_px == ():
        tower.check_side(processor.tile_px, root / "vision_tower")
    keeps_class = config.get("mm_vision_select_feature", "patch") == "cls_patch" and not tiling.scales_px
    start, end = _encoder_texts(where, config)
    folders = (root / "llm", root)
    vision = (root / "vision_tower", root / "mm_projector")
    weights = tuple(path for folder in (root / "llm", *vision) for path in _weights(folder))
    layers = config.get("mm_vision_select_layer")
    mode = processor.mode if preprocess == "processor" else preprocess
    return Checkpoint(
        root=root,
        family="nvila",
        patches_per_tile=tower.patches_per_side**2 + (tower.class_tokens if keeps_class else 0),
        channels=tower.hidden * (len(layers) if isinstance(layers, list) else 1),
        preprocess=processor.preprocess(mode),
        tiling=tiling,
        prompt=PromptConvention(
            folders=folders,
            image_token_id=None,
            text_after="\n" if mode == "dynamic" else "",
            each_tile=mode == "dynamic",
            start_text=start,
            end_text=end,
            video_as_pictures=False,
        ),
        vision_files=(where, *(path for folder in vision for path in (folder / "config.json", *_weights(folder)))),
        files=(*_present([root, *folders, *vision], [*_SETTINGS, *_TEXTS, "chat_template.jinja"]), *weights),
    )


def _vila_tiling(where: Path, config: Mapping[str, Any], tower: _Tower, downsample: int) -> tuple[Any, TilingSection]:
    """(mode, or "processor" for what the image processor does by itself; the tiling group)."""
    aspect = config.get("image_aspect_ratio") or "resize"
    scales: tuple[int, ...] = ()
    mode = "processor"
    if "dynamic_s2" in aspect and config.get("dynamic_s2"):
        mode, scales = "dynamic_s2", _scales(where, config)
        if scales[0] != tower.tile_px:
            raise ExportError(f"{where}: s2_scales begin with {scales[0]} px, the tower takes {tower.tile_px} px")
    elif "dynamic" in aspect:
        mode = "dynamic"
    elif aspect in ("resize", "pad"):
        mode = aspect
    return mode, TilingSection(
        tile_px=tower.tile_px,
        patches_per_side=tower.patches_per_side,
        min_tiles=_count(where, config, "min_tiles", 1),
        max_tiles=_count(where, config, "max_tiles", 12),
        use_thumbnail=mode == "dynamic",
        scales_px=scales,
        resize_output_to_scale_idx=int(config.get("s2_resize_output_to_scale_idx") or 0) if scales else 0,
        downsample=downsample,
        tile_all=bool(config.get("tile_all", False)),
        video_frames=_count(where, config, "num_video_frames", DEFAULT_VIDEO_FRAMES),
    )


def _scales(where: Path, config: Mapping[str, Any]) -> tuple[int, ...]:
    text = config.get("s2_scales")
    try:
        scales = tuple(sorted(int(part) for part in str(text).split(",")))
    except ValueError as problem:
        raise ExportError(f"{where}: s2_scales is {text!r}, expected sizes such as '448,896'", hint=_COPY) from problem
    return scales


def _count(where: Path, config: Mapping[str, Any], key: str, default: int) -> int:
    value = config.get(key)
    value = default if value is None else value
    if type(value) is not int or not 1 <= value <= 4096:
        raise ExportError(f"{where}: {key} is {value!r}, expected 1 to 4096", hint=_COPY)
    return value


def _downsample(path: Path) -> int:
    kind = _read(path).get("mm_projector_type")
    layers = kind[3:-6] if isinstance(kind, str) and kind.startswith("mlp") and kind.endswith("x_gelu") else ""
    if kind in ("linear", "identity") or (layers.isascii() and layers.isdigit()):
        return 1
    if kind not in _DOWNSAMPLE:
        known = ", ".join(["linear", "identity", "mlp{N}x_gelu", *_DOWNSAMPLE])
        raise ExportError(f"{path}: mm_projector_type is {kind!r}", hint=f"one of {known}")
    return _DOWNSAMPLE[kind]


def _encoder_texts(where: Path, config: Mapping[str, Any]) -> tuple[str, str]:
    """Texts embedded before and after each image: ``image_encoder``'s start_tokens and end_tokens."""
    described = config.get("image_encoder")
    if isinstance(described, str):
        try:
            described = json.loads(described)
        except ValueError as problem:
            raise ExportError(f"{where}: image_encoder is not JSON: {problem}", hint=_COPY) from problem
    described = described or {}
    if not isinstance(described, dict) or not str(described.get("_target_", "BasicImageEncoder")).endswith(
        "BasicImageEncoder"
    ):
        raise ExportError(f"{where}: image_encoder is {described!r}", hint="BasicImageEncoder can be exported")
    start, end = described.get("start_tokens"), described.get("end_tokens", "\n")
    if not all(text is None or isinstance(text, str) for text in (start, end)):
        raise ExportError(f"{where}: image_encoder has start {start!r} and end {end!r}, expected texts", hint=_COPY)
    return start or "", end or ""


class _Tower:
    """A vision tower's configuration: CLIP or SigLIP."""

    def __init__(self, where: Path, config: Any) -> None:
        config = config if isinstance(config, dict) else {}
        described = str((config.get("architectures") or [config.get("model_type")])[0])
        if "siglip" not in described.lower() and "clip" not in described.lower():
            raise ExportError(
                f"{where}: unknown vision tower {described!r}", hint="CLIP and SigLIP towers can be exported"
            )
        inner = config.get("vision_config")
        config = inner if isinstance(inner, dict) else config
        self.class_tokens = 0 if "siglip" in described.lower() else 1
        self.tile_px = _count(where, config, "image_size", 224)
        self.hidden = _count(where, config, "hidden_size", 768)
        patch = _count(where, config, "patch_size", 32 if self.class_tokens else 16)
        self.patches_per_side = self.tile_px // patch
        if not self.patches_per_side:
            raise ExportError(f"{where}: patches of {patch} px in tiles of {self.tile_px} px", hint=_COPY)

    def check_side(self, tile_px: int, folder: Path) -> None:
        """The image processor must make what the tower takes."""
        if tile_px != self.tile_px:
            raise ExportError(
                f"{folder}: the image processor makes tiles of {tile_px} px, the vision tower takes {self.tile_px} px",
                hint="set size in preprocessor_config.json",
            )
