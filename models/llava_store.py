"""Writes a LLaVA model as its authors publish it, with everything that it needs in the one directory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from models.directories import replaced_directory
from models.int4 import Int4Linear
from models.projector import RangeClip
from models.vision_tower import CLIPVisionTower
from runtime.errors import OutputError

TOWER, RANGE = "vision_tower", "emb_min_max.safetensors"
_TOWER_PREFIX = "model.vision_tower.vision_tower."


def save_llava(
    model: Any, output: Path, state_dict: dict[str, Tensor] | None, save: Callable[[Path, dict[str, Tensor]], None]
) -> None:
    """See ``LlavaLlamaForCausalLM.save_pretrained``; ``save`` is transformers' own for configuration and weights."""
    tower = model.get_vision_tower()
    if tower is not None and not isinstance(tower, CLIPVisionTower):
        raise OutputError(
            f"{output}: a {type(tower).__name__} has no place in LLaVA's own layout", hint="CLIP towers can be saved"
        )
    if any(isinstance(module, Int4Linear) for module in model.modules()):
        raise OutputError(
            f"{output}: the model runs on integer weights alone", hint="copy the checkpoint that it was loaded from"
        )
    output = output.absolute()
    tensors = model.state_dict() if state_dict is None else state_dict
    with replaced_directory(output) as building:
        _write(model, tower, building, output, tensors, save)


def _write(model: Any, tower: Any, building: Path, output: Path, tensors: dict[str, Tensor], save: Any) -> None:
    config, kept = model.config, {}
    for name in ("mm_vision_tower", "min_max_range_path", "dtype"):
        kept[name] = getattr(config, name, None)
    config.dtype = model.dtype
    if tower is not None:
        config.mm_vision_tower = TOWER
        inside = {name.removeprefix(_TOWER_PREFIX): t for name, t in tensors.items() if name.startswith(_TOWER_PREFIX)}
        _write_tower(tower, building / TOWER, inside)
    for module in model.modules():
        if isinstance(module, RangeClip):
            config.min_max_range_path = str(output / RANGE)
            save_file({"min": module.min[0].clone(), "max": module.max[0].clone()}, building / RANGE)
    try:
        save(building, {name: tensor for name, tensor in tensors.items() if not name.startswith(_TOWER_PREFIX)})
    finally:
        for name, value in kept.items():
            setattr(config, name, value)
    if model.tokenizer is not None:
        model.tokenizer.save_pretrained(building)


def _write_tower(tower: Any, folder: Path, tensors: dict[str, Tensor]) -> None:
    """The frozen tower in a folder of its own, as transformers writes it; the live one where ``tensors`` lack it."""
    if not tower.is_loaded:
        tower.load_model()
    folder.mkdir()
    tower.vision_tower.save_pretrained(folder, state_dict=tensors or None)
    tower.image_processor.save_pretrained(folder)
