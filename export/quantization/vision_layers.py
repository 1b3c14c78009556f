"""A checkpoint's vision tower on calibration pictures, one layer's weights in memory at a time. Imports torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from export.checkpoint import Checkpoint
from export.decoder.safetensors_file import SafetensorsFile
from export.manifest_groups import vision_section
from export.progress import Progress
from export.vision.load import load_vision
from models.lazy_parameters import WithoutMemory
from models.smoothquant import ALPHAS, Calibration, calibrate_layers, dropped_tokens, first_states, layers_computed
from models.tiling import pictures_tiles
from models.vision_tower import VisionTower
from runtime.errors import ExportError

TRIALS = 4  # tiles on which the candidates for alpha are compared


@torch.no_grad()
def measure_layers(checkpoint: Checkpoint, pictures: Sequence[Path], max_tiles: int, progress: Progress) -> Calibration:
    """Maxima of all linear layers of the tower over at most ``max_tiles`` tiles of ``pictures``, and the best alpha."""
    with WithoutMemory():
        tower = load_vision(checkpoint).tower
    inner: Any = tower.vision_tower
    inner.set_attn_implementation("sdpa")
    hidden = _embedded(checkpoint, tower, pictures, max_tiles)
    total = layers_computed(tower)
    progress.begin("measuring the vision tower")

    def done(layers: int) -> None:
        progress.update(layers, total)

    measured = calibrate_layers(
        hidden, _layers(tower, total), alphas=ALPHAS, trials=TRIALS, skip_tokens=dropped_tokens(tower), progress=done
    )
    progress.end()
    return measured


def _embedded(checkpoint: Checkpoint, tower: VisionTower, pictures: Sequence[Path], max_tiles: int) -> list[Tensor]:
    """First hidden states [1, N, D]: of every picture as many tiles, evenly spread over all that the model makes."""
    processor = tower.image_processor
    if processor is None:  # one folder holds everything
        processor = tower.processor_class.from_pretrained(checkpoint.root)
    spec = vision_section(checkpoint, "int8").tiling_spec()
    chosen = pictures[:max_tiles]
    states: list[Tensor] = []
    inner: Any = tower.vision_tower
    embeddings = [inner.embeddings, *([inner.pre_layrnorm] if hasattr(inner, "pre_layrnorm") else [])]
    with _in_memory(*embeddings):
        for path in chosen:
            with Image.open(path) as opened:
                (tiles,), _ = pictures_tiles([opened], spec, processor)
            states += _spread(first_states(tower, tiles.float()), max(1, max_tiles // len(chosen)))
    return states


def _spread(states: Tensor, count: int) -> list[Tensor]:
    """At most ``count`` of states [P, N, D], evenly spread, as [1, N, D] each."""
    count = min(count, len(states))
    return [states[index * len(states) // count][None].clone() for index in range(count)]


def _layers(tower: VisionTower, count: int) -> Iterator[nn.Module]:
    """The first ``count`` encoder layers, each with its weights only until the next one is asked for."""
    inner: Any = tower.vision_tower
    for layer in inner.encoder.layers[:count]:
        with _in_memory(layer):
            yield layer


@contextmanager
def _in_memory(*modules: nn.Module) -> Iterator[None]:
    """Parameters that were left on disk (`WithoutMemory`) are there inside, in f32."""
    before: list[tuple[nn.Module, str, nn.Parameter]] = []
    files: dict[Path, SafetensorsFile] = {}
    try:
        for module in modules:
            for owner in module.modules():
                for name, parameter in list(owner.named_parameters(recurse=False)):
                    if not parameter.is_meta:  # CLIP's class token is made with values
                        continue
                    setattr(owner, name, nn.Parameter(_read(name, parameter, files), requires_grad=False))
                    before.append((owner, name, parameter))
        yield
    finally:
        for owner, name, parameter in before:
            setattr(owner, name, parameter)
        for file in files.values():
            file.close()


def _read(name: str, parameter: Any, files: dict[Path, SafetensorsFile]) -> Tensor:
    if not hasattr(parameter, "stored_in"):
        raise ExportError(f"the checkpoint has no values for the vision tower's {name!r}", hint="copy it again")
    path, stored = parameter.stored_in
    if path not in files:
        files[path] = SafetensorsFile(path)
    rows = parameter.shape[0] if parameter.dim() else 1
    return torch.from_numpy(files[path].read_rows(stored, 0, rows)).reshape(parameter.shape)
