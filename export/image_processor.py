"""What preprocessor_config.json of a checkpoint says, as the manifest's `vision.preprocess` group. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.bundle.manifest import PreprocessSpec, Resample, TileMode
from runtime.errors import ExportError
from runtime.strict_json import read_json

MAX_CONFIG_BYTES = 4 << 20
_FILTERS: tuple[Resample, ...] = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # Pillow's numbers
_HINT = "correct preprocessor_config.json in the checkpoint"
_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
# What transformers assumes where the file is silent.
_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "clip": {
        "size": {"shortest_edge": 224},
        "crop_size": {"height": 224, "width": 224},
        "do_center_crop": True,
        "image_mean": _CLIP_MEAN,
        "image_std": _CLIP_STD,
    },
    "siglip": {"size": {"height": 224, "width": 224}, "image_mean": (0.5,) * 3, "image_std": (0.5,) * 3},
}


@dataclass(frozen=True, slots=True)
class ImageProcessor:
    """A processor's output side and how it gets there. ``mode`` is what it does by itself: resize, crop or pad."""

    tile_px: int
    mode: TileMode
    shortest_edge_px: int | None
    resample: Resample
    rescale: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def preprocess(self, mode: TileMode) -> PreprocessSpec:
        """The manifest's group for a checkpoint that uses this processor in ``mode``."""
        red, green, blue = (min(255, max(0, int(value * 255))) for value in self.mean)
        return PreprocessSpec(
            mode=mode,
            resample=self.resample,
            shortest_edge_px=self.shortest_edge_px if mode == "crop" else None,
            rescale=self.rescale,
            mean=self.mean,
            std=self.std,
            pad_rgb=(red, green, blue) if mode == "pad" else None,
        )


def read_image_processor(folder: Path) -> ImageProcessor:
    """Reads ``preprocessor_config.json`` (or ``image_processor`` of processor_config.json). Raises ExportError."""
    path = folder / "preprocessor_config.json"
    if path.is_file():
        value = read_json(path, max_bytes=MAX_CONFIG_BYTES, error=ExportError, hint=_HINT)
    else:
        path = folder / "processor_config.json"
        if not path.is_file():
            raise ExportError(f"{folder}: preprocessor_config.json is missing", hint="copy it from the checkpoint")
        whole = read_json(path, max_bytes=MAX_CONFIG_BYTES, error=ExportError, hint=_HINT)
        value = whole.get("image_processor") if isinstance(whole, dict) else None
    if not isinstance(value, dict):
        raise ExportError(f"{path}: no description of an image processor in it", hint=_HINT)
    return _Reader(path, value).processor()


class _Reader:
    def __init__(self, path: Path, value: Mapping[str, Any]) -> None:
        self._path = path
        kind = str(value.get("image_processor_type") or value.get("feature_extractor_type") or "CLIPImageProcessor")
        family = next((name for name in _DEFAULTS if name in kind.lower()), None)
        if family is None and not kind.startswith("Llava"):
            raise ExportError(
                f"{path}: image_processor_type is {kind!r}", hint="CLIP, SigLIP and LLaVA's are supported"
            )
        self._values = {**_DEFAULTS[family or "clip"], **{key: item for key, item in value.items() if item is not None}}

    def processor(self) -> ImageProcessor:
        if not self._flag("do_resize", True):
            raise self._wrong("do_resize", False, "true")
        side, short = self._sides()
        rescale = self._number("rescale_factor", 1 / 255) if self._flag("do_rescale", True) else 1.0
        normalise = self._flag("do_normalize", True)
        return ImageProcessor(
            tile_px=side,
            mode="pad" if self._flag("do_pad", False) else "resize" if short is None else "crop",
            shortest_edge_px=short,
            resample=self._resample(),
            rescale=rescale,
            mean=self._triple("image_mean") if normalise else (0.0, 0.0, 0.0),
            std=self._triple("image_std") if normalise else (1.0, 1.0, 1.0),
        )

    def _sides(self) -> tuple[int, int | None]:
        """(output side, shortest edge before a centre crop or None)."""
        size = self._values["size"]
        size = {"shortest_edge": size} if isinstance(size, int) and not isinstance(size, bool) else size
        if not isinstance(size, dict):
            raise self._wrong("size", size, "height and width, or shortest_edge")
        short = size.get("shortest_edge")
        if not self._flag("do_center_crop", False):
            if short is not None:
                if self._flag("do_pad", False):  # a square after padding: its shortest edge is its side
                    return self._side("size.shortest_edge", short), None
                raise self._wrong("size", size, "height and width where nothing is cut to a square")
            return self._square("size", size), None
        crop = self._values.get("crop_size", size)
        side = self._side("crop_size", crop) if isinstance(crop, int) else self._square("crop_size", crop)
        if short is None:
            if self._square("size", size) != side:
                raise self._wrong("crop_size", crop, "the side in size")
            return side, None
        if self._side("size.shortest_edge", short) < side:
            raise self._wrong("size.shortest_edge", short, f"at least crop_size {side}")
        return side, None if self._flag("do_pad", False) else short

    def _square(self, key: str, value: Any) -> int:
        if not isinstance(value, dict) or value.get("height") != value.get("width"):
            raise self._wrong(key, value, "equal height and width")
        return self._side(key, value.get("height"))

    def _side(self, key: str, value: Any) -> int:
        if type(value) is not int or not 1 <= value <= 4096:
            raise self._wrong(key, value, "1 to 4096 px")
        return value

    def _flag(self, key: str, default: bool) -> bool:
        value = self._values.get(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, value, "true or false")
        return value

    def _number(self, key: str, default: float) -> float:
        value = self._values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 1e-6 <= value <= 1e3:
            raise self._wrong(key, value, "a number from 1e-6 to 1000")
        return float(value)

    def _triple(self, key: str) -> tuple[float, float, float]:
        value = self._values.get(key)
        numbers = [item for item in value if type(item) in (int, float) and math.isfinite(item)] if value else []
        if len(numbers) != 3 or len(value or ()) != 3 or (key == "image_std" and min(numbers) <= 0):
            raise self._wrong(key, value, "three numbers, for image_std above 0")
        red, green, blue = map(float, numbers)
        return red, green, blue

    def _resample(self) -> Resample:
        value = self._values.get("resample", 3)
        if type(value) is not int or not 0 <= value < len(_FILTERS):
            raise self._wrong("resample", value, f"0 to {len(_FILTERS) - 1}")
        return _FILTERS[value]

    def _wrong(self, key: str, value: Any, expected: str) -> ExportError:
        return ExportError(f"{self._path}: {key} is {value!r}, expected {expected}", hint=_HINT)
