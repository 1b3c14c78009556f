"""The configuration of VILA and NVILA checkpoints, and where their parts lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig

from models.weights import model_directory, read_json
from runtime.errors import ExportError

PARTS = ("llm", "vision_tower", "mm_projector")
_DTYPES = {
    "float16": torch.float16,
    "half": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float": torch.float32,
}
# Every field with the value that published code assumes when a config.json does not name it.
_DEFAULTS: dict[str, Any] = {
    "llm_cfg": None,
    "vision_tower_cfg": None,
    "mm_projector_cfg": None,
    "resume_path": None,
    "hidden_size": None,
    "mm_hidden_size": None,
    "image_aspect_ratio": None,
    "num_video_frames": None,
    "fps": None,
    "mm_vision_select_layer": None,
    "mm_vision_select_feature": None,
    "mm_use_im_start_end": False,
    "mm_use_im_patch_token": False,
    "s2": None,
    "dynamic_s2": None,
    "s2_scales": None,
    "s2_max_split_size": None,
    "s2_resize_output_to_scale_idx": 0,
    "min_tiles": 1,
    "max_tiles": 12,
    "tile_all": False,
    "image_encoder": '{"_target_": "llava.model.encoders.BasicImageEncoder"}',
    "video_encoder": '{"_target_": "llava.model.encoders.BasicVideoEncoder"}',
    "model_dtype": None,
    "chat_template": None,
    "ps3": False,
}


class LlavaConfig(PretrainedConfig):
    """Fields of a VILA or NVILA config.json; unknown ones are kept."""

    model_type = "llava_llama"

    def __init__(self, **fields: Any) -> None:
        for name, default in _DEFAULTS.items():
            setattr(self, name, fields.pop(name, default))
        fields.pop("model_type", None)
        super().__init__(**fields)

    @classmethod
    def from_directory(cls, directory: Path) -> LlavaConfig:
        """The configuration in ``directory``/config.json, set to load its parts from there.

        ``resume_path`` and ``_name_or_path`` of a published file are paths of its training machine, so they are
        replaced.
        """
        fields = read_json(directory / "config.json")
        for part in PARTS:
            if fields.get(f"{part}_cfg") is None and (directory / part).is_dir():
                fields[f"{part}_cfg"] = {}
        fields |= {"resume_path": str(directory), "_name_or_path": str(directory)}
        return cls(**fields)


def get_model_config(config: Any) -> list[str]:
    """Paths of decoder, vision tower and projector, in that order.

    A part given as an object lies in the folder of its name under ``config._name_or_path`` (else ``resume_path``); a
    string is used as it stands. Raises ValueError when a part is not configured at all.
    """
    root = config._name_or_path if len(config._name_or_path or "") >= 2 else config.resume_path
    if root and not Path(root).is_dir():
        root = str(model_directory(root))
    paths = []
    for part in PARTS:
        described = getattr(config, f"{part}_cfg", None)
        if described is None:
            continue
        if isinstance(described, str):
            paths.append(described)
        elif root:
            paths.append(str(Path(root) / part))
    if len(paths) != len(PARTS):
        raise ValueError("`llm_cfg` `mm_projector_cfg` `vision_tower_cfg` not found in the config.")
    for path in paths:
        if config.resume_path and not Path(path).is_dir():
            raise ExportError(f"{path} is missing", hint="resume_path is set, so all three parts must be there")
    return paths


def parse_dtype(value: str | torch.dtype | None) -> torch.dtype:
    """A dtype from "torch.bfloat16", "float16" and the like, through a table. Raises ExportError for anything else."""
    if isinstance(value, torch.dtype):
        return value
    dtype = _DTYPES.get(str(value).removeprefix("torch."))
    if dtype is None:
        raise ExportError(f"model_dtype is {value!r}", hint="one of torch." + ", torch.".join(_DTYPES))
    return dtype
