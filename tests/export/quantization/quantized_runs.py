"""Quantised tiny checkpoints, each made once for all tests, and readers of their files that share no code with us."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file

from export.progress import Progress
from export.quantization.request import QuantizeRequest, QuantizeResult
from export.quantization.run import quantize
from tests.models.tiny import picture, write_llava, write_nvila, write_original_llava

GROUP = 32
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
LINEARS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj") + (
    *("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
)
WRITERS: dict[str, Callable[[Path], Path]] = {
    "llava": lambda path: write_llava(path, dtype=torch.float16),
    "original": write_original_llava,
    "nvila": write_nvila,
}


class Runs:
    """Checkpoints by layout, pictures, and results by settings."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pictures = folder / "pictures"
        self.pictures.mkdir()
        for index in range(3):
            picture(60 + 9 * index, 50, index).save(self.pictures / f"{index}.png")
        self._made: dict[tuple[Any, ...], QuantizeResult] = {}

    def checkpoint(self, layout: str) -> Path:
        """A tiny checkpoint of that layout."""
        root = self.folder / layout
        return root if root.is_dir() else WRITERS[layout](root)

    def request(self, layout: str, out: str, **changes: Any) -> QuantizeRequest:
        """A small request; three samples, of which one is held out."""
        settings: dict[str, Any] = {"calibration": self.pictures, "group_size": GROUP, "samples": 3} | changes
        return QuantizeRequest(self.checkpoint(layout), self.folder / out, **settings)

    def result(self, layout: str, **changes: Any) -> QuantizeResult:
        """The result for some settings, made on first use."""
        key = (layout, *sorted(changes.items()))
        if key not in self._made:
            request = self.request(layout, f"{layout}-{len(self._made)}", **changes)
            self._made[key] = quantize(request, Progress())
        return self._made[key]


def tensors(folder: Path) -> dict[str, Any]:
    """All tensors of a model's files in a folder."""
    found: dict[str, Any] = {}
    for path in sorted(folder.glob("model*.safetensors")):
        found |= load_file(path)
    return found


def decoder_folder(root: Path) -> Path:
    """Where the decoder's weights lie."""
    return root / "llm" if (root / "llm").is_dir() else root


def config(path: Path) -> dict[str, Any]:
    """The table in a JSON file."""
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value


def columns(words: np.ndarray) -> np.ndarray:
    """i32 [R, C] -> nibbles [R, 8C]: nibble i of word c is column 8c + order[i] (AutoAWQ's gemm layout)."""
    bits = words.astype(np.int64) & 0xFFFFFFFF
    out = np.zeros((words.shape[0], words.shape[1] * 8), np.float64)
    for nibble, column in enumerate(ORDER):
        out[:, column::8] = (bits >> (4 * nibble)) & 15
    return out


def dequantised(stored: dict[str, Any], linear: str, group: int = GROUP) -> np.ndarray:
    """A linear's weight f64 [N, K] from AutoAWQ's gemm tensors, (q - z)·s, by the format's definition."""
    q, z = columns(stored[f"{linear}.qweight"]), columns(stored[f"{linear}.qzeros"])
    scales = stored[f"{linear}.scales"].astype(np.float64)
    grown = [np.repeat(item, group, axis=0) for item in (z, scales)]
    weight: np.ndarray = ((q - grown[0]) * grown[1]).T
    return weight


def rounded(weight: np.ndarray, group: int = GROUP) -> np.ndarray:
    """Round to nearest in f64 from its definition: a range that contains 0, scales in f16, half to even."""
    grouped = weight.astype(np.float64).reshape(len(weight), -1, group)
    low, high = np.minimum(grouped.min(2), 0), np.maximum(grouped.max(2), 0)
    scale = ((high - low).astype(np.float32) / np.float32(15)).astype(np.float16).astype(np.float64)
    zero = np.clip(np.rint(-low / scale), 0, 15)
    q = np.clip(np.rint(grouped / scale[..., None]) + zero[..., None], 0, 15)
    result: np.ndarray = ((q - zero[..., None]) * scale[..., None]).reshape(weight.shape)
    return result
