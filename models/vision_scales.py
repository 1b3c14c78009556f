"""What SmoothQuant needs to know about a vision tower: activation maxima by name, on disk, and the smoothing formula.

numpy alone, so that the exporter folds scales into a graph without torch; ``models.smoothquant`` measures them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from runtime.errors import ExportError

F32 = npt.NDArray[np.float32]

FOLDER, FILE, RECORD = "vision_int8", "vision_scales.safetensors", "vision_scales.json"
DEFAULT_ALPHA = 0.3  # as published for SigLIP
FLOOR = 1e-5  # below this a channel counts as silent; as published
LEVELS = 127
QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
LINEARS = (*QKV, "self_attn.out_proj", "mlp.fc1", "mlp.fc2")
SMOOTHED: Mapping[str, tuple[str, ...]] = {"layer_norm1": QKV, "layer_norm2": ("mlp.fc1",)}
NORM_OF = {linear: norm for norm, linears in SMOOTHED.items() for linear in linears}
_PREFIX = "vision_tower.vision_model.encoder.layers."
_WEIGHT = ".weight_max"  # beside the published names: largest |w| of each input channel


@dataclass(frozen=True)
class ActivationScales:
    """Largest |x| of every input channel of every linear layer of a tower's encoder, over the calibration tiles.

    ``maxima`` and ``weight_maxima`` map ``linear_name(layer, linear)`` to f32 [C]; the latter, the largest |w| of each
    input channel, say which weights were measured (empty in files from elsewhere). ``alpha`` is the smoothing's.
    """

    maxima: Mapping[str, F32]
    weight_maxima: Mapping[str, F32]
    alpha: float = DEFAULT_ALPHA
    tiles: int = 0

    @property
    def layers(self) -> int:
        """How many encoder layers were measured."""
        return -(-len(self.maxima) // len(LINEARS))

    def smoothing(self, layer: int, norm: str, weight_maxima: F32, alpha: float | None = None) -> F32:
        """What the norm's output is divided by and the columns behind it multiplied with, f32 [C].

        ``weight_maxima`` f32 [C]: largest |w| of each input channel over all linear layers that the norm feeds.
        """
        activation = self.maxima[linear_name(layer, SMOOTHED[norm][0])]
        return smoothing_scales(activation, weight_maxima, self.alpha if alpha is None else alpha)

    def input_scale(self, layer: int, linear: str, smoothing: F32 | None) -> np.float32:
        """The static scale of a linear layer's whole input: int8 127 is the largest |x| seen, after smoothing."""
        seen = self.maxima[linear_name(layer, linear)]
        largest = np.max(seen if smoothing is None else seen / smoothing, initial=0.0)
        return np.float32(max(float(largest), FLOOR)) / np.float32(LEVELS)


def linear_name(layer: int, linear: str) -> str:
    """The published name: ``vision_tower.vision_model.encoder.layers.0.self_attn.q_proj``."""
    return f"{_PREFIX}{layer}.{linear}"


def smoothing_scales(activation: F32, weight: F32, alpha: float) -> F32:
    """s = activation^alpha / weight^(1 - alpha) for each channel, every part floored at 1e-5 (SmoothQuant, eq. 4)."""
    if not 0.0 <= alpha <= 1.0:
        raise ExportError(f"alpha is {alpha}, expected 0 to 1", hint=f"the published value is {DEFAULT_ALPHA}")
    numerator = np.maximum(activation, FLOOR).astype(np.float64) ** alpha
    denominator = np.maximum(weight, FLOOR).astype(np.float64) ** (1.0 - alpha)
    scales: F32 = np.maximum(numerator / denominator, FLOOR).astype(np.float32)
    return scales


def weight_scales(weight: F32) -> F32:
    """Symmetric int8 scales of the rows of a weight [N, K], f32 [N]: largest |w| / 127, floored at 1e-5 / 127."""
    largest: F32 = np.abs(weight).max(axis=1, initial=0.0).astype(np.float32)
    return np.maximum(largest, np.float32(FLOOR)) / np.float32(LEVELS)


def quantize_rows(weight: F32, scales: F32) -> npt.NDArray[np.int8]:
    """int8 [N, K]: each row divided by its scale and rounded half to even; -128 does not occur."""
    rounded = np.rint(weight / scales[:, None])
    return np.clip(rounded, -LEVELS, LEVELS).astype(np.int8)


def write_scales(path: Path, scales: ActivationScales) -> None:
    """Writes a safetensors file: the published names for activations, ``….weight_max`` beside them."""
    tensors = dict(scales.maxima) | {name + _WEIGHT: value for name, value in scales.weight_maxima.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    ready = {name: np.ascontiguousarray(value, np.float32) for name, value in tensors.items()}
    save_file(ready, path, metadata={"alpha": repr(scales.alpha), "tiles": str(scales.tiles)})


def read_scales(path: Path) -> ActivationScales:
    """Reads what ``write_scales`` wrote, or a published table in safetensors (alpha is then the published one).

    Names outside the encoder's linear layers are left out. Raises ExportError for a damaged file, a layer of which a
    linear layer is missing, and values that are negative or not finite.
    """
    tensors, metadata = _tensors(path)
    maxima = {name: value for name, value in tensors.items() if name.startswith(_PREFIX) and name.endswith(LINEARS)}
    weights = {name.removesuffix(_WEIGHT): value for name, value in tensors.items() if name.endswith(_WEIGHT)}
    for name, value in (*maxima.items(), *weights.items()):
        if value.ndim != 1 or not np.isfinite(value).all() or (value < 0).any():
            raise ExportError(f"{path}: {name} of shape {value.shape} is no list of finite maxima", hint=_again(path))
    scales = ActivationScales(maxima, weights, _number(path, metadata), int(_text(metadata, "tiles", "0")))
    wanted = {linear_name(layer, linear) for layer in range(max(1, scales.layers)) for linear in LINEARS}
    if wanted != set(maxima) or not set(weights) <= wanted:
        odd = sorted(wanted.symmetric_difference(maxima) | set(weights) - wanted)
        raise ExportError(f"{path}: {odd[0]} is missing, or has no place among whole layers", hint=_again(path))
    return scales


def _tensors(path: Path) -> tuple[dict[str, F32], dict[str, str]]:
    try:
        with safe_open(str(path), framework="numpy") as file:
            read = {name: file.get_tensor(name).astype(np.float32) for name in file.keys()}  # noqa: SIM118 (no mapping)
            return read, file.metadata() or {}
    except (SafetensorError, OSError, TypeError) as problem:
        raise ExportError(f"{path} cannot be read as safetensors: {problem}", hint=_again(path)) from problem


def _number(path: Path, metadata: Mapping[str, str]) -> float:
    text = _text(metadata, "alpha", str(DEFAULT_ALPHA))
    try:
        alpha = float(text)
    except ValueError:
        alpha = math.nan
    if not 0.0 <= alpha <= 1.0:
        raise ExportError(f"{path}: alpha is {text!r}, expected 0 to 1", hint=_again(path))
    return alpha


def _text(metadata: Mapping[str, Any], key: str, default: str) -> str:
    return str(metadata.get(key, default))


def _again(path: Path) -> str:
    root = path.parent.parent if path.parent.name == FOLDER else path.parent
    return f"measure it again: python -m export.quantize {root} --vision --calibration <images> --out <dir>"
