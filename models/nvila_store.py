"""Writes an NVILA model as its three folders, atomically."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from runtime.errors import OutputError

_PREFIXES = {"llm": "llm.", "vision_tower": "vision_tower.vision_tower.", "mm_projector": "mm_projector."}


def save_parts(model: Any, output: Path, state_dict: dict[str, Tensor] | None) -> None:
    """See ``LlavaMetaModel.save_pretrained``. Raises OutputError when the disk does not take it."""
    tensors = model.state_dict() if state_dict is None else state_dict
    output.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        for part, prefix in _PREFIXES.items():
            folder = building / part
            folder.mkdir()
            save_weights(folder, {k.split(prefix, 1)[1]: v for k, v in tensors.items() if k.startswith(prefix)})
        _save_configs(model, building, output)
        building.chmod(0o755)
        replace_directory(building, output)
    except OSError as error:
        shutil.rmtree(building, ignore_errors=True)
        raise OutputError(
            f"{output} cannot be written: {error}", hint="free some space or choose another place"
        ) from error
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise


def save_weights(folder: Path, tensors: dict[str, Tensor]) -> None:
    """model.safetensors with the tensors as they are; tensors that share memory are stored once each."""
    kept: dict[str, Tensor] = {}
    seen: set[tuple[int, tuple[int, ...]]] = set()
    for name, tensor in tensors.items():
        identity = (tensor.data_ptr(), tuple(tensor.shape))
        if identity in seen and name == "lm_head.weight":
            continue  # tied to the embeddings, which come first
        seen.add(identity)
        kept[name] = tensor.detach().contiguous().clone()
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def _save_configs(model: Any, building: Path, output: Path) -> None:
    llm, tower, projector = model.get_llm(), model.get_vision_tower(), model.get_mm_projector()
    model.tokenizer.save_pretrained(building / "llm")
    llm.config.save_pretrained(building / "llm")
    llm.generation_config.save_pretrained(building / "llm")
    tower.config.architectures = [type(tower.vision_tower).__name__]
    tower.config.save_pretrained(building / "vision_tower")
    tower.image_processor.save_pretrained(building / "vision_tower")
    _write_json(building / "mm_projector" / "config.json", projector.config)
    fields = model.config.to_dict()
    described = {"llm_cfg": llm.config, "vision_tower_cfg": tower.config, "mm_projector_cfg": projector.config}
    for key, config in described.items():
        fields[key] = config if isinstance(config, dict) else config.to_dict()
        fields[key].pop("auto_map", None)
        fields[key]["_name_or_path"] = str(output / key.removesuffix("_cfg"))
    fields |= {"_name_or_path": str(output), "resume_path": str(output), "architectures": [type(model).__name__]}
    _write_json(building / "config.json", fields)


def _write_json(path: Path, fields: dict[str, Any]) -> None:
    with path.open("w", encoding="utf-8") as file:
        json.dump(fields, file, indent=2, sort_keys=True, default=str)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())


def replace_directory(source: Path, target: Path) -> None:
    """Put ``source`` in the place of ``target``; what was there is moved aside first and then removed."""
    if not target.exists():
        source.rename(target)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent)) / target.name
    target.rename(aside)
    try:
        source.rename(target)
    except OSError:
        aside.rename(target)
        raise
    shutil.rmtree(aside.parent, ignore_errors=True)
