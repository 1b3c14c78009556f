"""Writes a VILA or NVILA model as its three folders, so that an interrupted save leaves what was there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from models.directories import replaced_directory
from models.packed import NOTE
from models.packed_store import packed_parts
from models.weights import read_json

_PREFIXES = {"llm": "llm.", "vision_tower": "vision_tower.vision_tower.", "mm_projector": "mm_projector."}


def save_parts(model: Any, output: Path, state_dict: dict[str, Tensor] | None) -> None:
    """See ``LlavaMetaModel.save_pretrained``. Raises OutputError when the disk does not take it."""
    output = output.absolute()
    tensors = model.state_dict() if state_dict is None else state_dict
    with replaced_directory(output) as building:
        _write_parts(model, building, output, tensors)


def _write_parts(model: Any, building: Path, output: Path, tensors: dict[str, Tensor]) -> None:
    parts = {
        part: {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        for part, prefix in _PREFIXES.items()
    }
    parts["llm"], settings, note = packed_parts(model, parts["llm"])
    for part, inside in parts.items():
        (building / part).mkdir()
        save_weights(building / part, inside)
    if note:
        _write_json(building / NOTE, note)
    _save_configs(model, building, output, settings)


def save_weights(folder: Path, tensors: dict[str, Tensor]) -> None:
    """model.safetensors with the tensors as they are; a head that shares the embeddings' memory is left out."""
    kept: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        place, whole = tensor.data_ptr(), tensor.untyped_storage().nbytes() == tensor.nbytes
        if place in seen and name == "lm_head.weight":
            continue  # tied to the embeddings, which come first
        # safetensors takes no tensor that shares memory; a copy of every one would double the model
        kept[name] = tensor.detach().contiguous() if whole and place not in seen else tensor.detach().clone()
        seen.add(place)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def _save_configs(model: Any, building: Path, output: Path, quantization: dict[str, Any] | None) -> None:
    llm, tower, projector = model.get_llm(), model.get_vision_tower(), model.get_mm_projector()
    model.tokenizer.save_pretrained(building / "llm")
    tower.config.architectures = [type(tower.vision_tower).__name__]
    tower.config.save_pretrained(building / "vision_tower")
    tower.image_processor.save_pretrained(building / "vision_tower")
    llm.config.save_pretrained(building / "llm")
    decoder = read_json(building / "llm" / "config.json") | {"dtype": _name(llm.dtype)}
    decoder.pop("quantization_config", None)  # what was loaded need not be what is saved
    if quantization is not None:
        decoder["quantization_config"] = quantization
    _write_json(building / "llm" / "config.json", decoder)
    # not save_pretrained, which refuses what published decoders say (a temperature without sampling)
    llm.generation_config.to_json_file(building / "llm" / "generation_config.json")
    _write_json(building / "mm_projector" / "config.json", projector.config)
    described = {"llm_cfg": decoder, "vision_tower_cfg": tower.config.to_dict(), "mm_projector_cfg": projector.config}
    fields = model.config.to_dict()
    for key, config in described.items():
        fields[key] = {name: value for name, value in config.items() if name != "auto_map"}
        fields[key]["_name_or_path"] = str(output / key.removesuffix("_cfg"))
    fields["model_dtype"] = str(model.dtype)
    fields |= {"_name_or_path": str(output), "resume_path": str(output), "architectures": [type(model).__name__]}
    _write_json(building / "config.json", fields)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _write_json(path: Path, fields: dict[str, Any]) -> None:
    path.write_text(json.dumps(fields, indent=2, sort_keys=True, default=str) + "\n", encoding="utf-8")
