"""What every layout reads: configurations, numbers in them, headers of weight files, the vision tower's shape."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from export.decoder.weight_files import WeightFiles
from export.image_processor import ImageProcessor
from runtime.bundle.manifest import TilingSection
from runtime.errors import ExportError
from runtime.strict_json import read_json

MAX_CONFIG_BYTES, MAX_TOKENIZER_BYTES = 4 << 20, 64 << 20
DEFAULT_VIDEO_FRAMES = 8
COPY = "copy or download the checkpoint again"
# Everything beside the weights that can decide what a bundle says; quantization.json is what export.quantize leaves.
_SETTINGS = (
    *("config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.json"),
    *("chat_template.jinja", "quantization.json"),
)
_MLP = re.compile(r"mlp([0-9]+)x_gelu")


def read_config(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises ExportError that names the file."""
    value = read_json(path, max_bytes=MAX_CONFIG_BYTES, error=ExportError, hint=COPY)
    if not isinstance(value, dict):
        raise ExportError(f"{path}: expected an object", hint=COPY)
    return value


def count(where: Path, config: Mapping[str, Any], key: str, default: int) -> int:
    """A whole number of a configuration; ``default`` where it is missing or null."""
    value = config.get(key)
    value = default if value is None else value
    if type(value) is not int or not 1 <= value <= 4096:
        raise ExportError(f"{where}: {key} is {value!r}, expected 1 to 4096", hint=COPY)
    return value


def weight_paths(folder: Path) -> tuple[Path, ...]:
    """The safetensors files of a folder, their headers read."""
    with WeightFiles(folder) as files:
        return files.paths


def setting_files(folders: Iterable[Path]) -> tuple[Path, ...]:
    """The configuration, tokenizer and template files that lie in ``folders``."""
    return tuple(folder / name for folder in folders for name in _SETTINGS if (folder / name).is_file())


def added_tokens(folder: Path) -> frozenset[str]:
    """The texts of the tokens that a tokenizer.json adds to its model's; none where the file is missing."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return frozenset()
    value = read_json(path, max_bytes=MAX_TOKENIZER_BYTES, error=ExportError, hint=COPY)
    added = value.get("added_tokens") if isinstance(value, dict) else None
    return frozenset(str(item.get("content")) for item in added or [] if isinstance(item, dict))


def is_mlp(kind: Any) -> bool:
    """Whether a projector type is mlp{N}x_gelu."""
    return isinstance(kind, str) and _MLP.fullmatch(kind) is not None


def check_identity(where: Path, width: int, hidden: Any) -> None:
    """An identity projector fits a decoder that is as wide as the features."""
    if hidden != width:
        raise ExportError(
            f"{where}: an identity projector of {width} channels, the decoder takes {hidden}",
            hint="a projector of another type brings them together",
        )


def layer_count(layers: Any) -> int:
    """How many hidden states ``mm_vision_select_layer`` puts side by side."""
    return len(layers) if isinstance(layers, list) else 1


class TowerConfig:
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
        self.tile_px = count(where, config, "image_size", 224)
        self.hidden = count(where, config, "hidden_size", 768)
        patch = count(where, config, "patch_size", 32 if self.class_tokens else 16)
        self.patches_per_side = self.tile_px // patch
        if not self.patches_per_side:
            raise ExportError(f"{where}: patches of {patch} px in tiles of {self.tile_px} px", hint=COPY)

    def check_side(self, tile_px: int, folder: Path) -> None:
        """The image processor must make what the tower takes."""
        if tile_px != self.tile_px:
            raise ExportError(
                f"{folder}: the image processor makes tiles of {tile_px} px, the vision tower takes {self.tile_px} px",
                hint="set size in preprocessor_config.json",
            )


def set_side(processor: ImageProcessor, tile_px: int) -> ImageProcessor:
    """The processor with its size overruled, as S² towers do: the whole picture squeezed to a square of that side."""
    mode = "resize" if processor.mode == "crop" else processor.mode
    return replace(processor, tile_px=tile_px, mode=mode, shortest_edge_px=None)


def one_tile(tile_px: int, patches_per_side: int) -> TilingSection:
    """The tiling of a family that shows every picture as one tile."""
    return TilingSection(
        tile_px=tile_px,
        patches_per_side=patches_per_side,
        min_tiles=1,
        max_tiles=1,
        use_thumbnail=False,
        scales_px=(),
        resize_output_to_scale_idx=0,
        downsample=1,
        tile_all=False,
        video_frames=DEFAULT_VIDEO_FRAMES,
    )
