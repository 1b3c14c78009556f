"""What a checkpoint is: its layout, how it sees pictures, how it is prompted. Torch-free.

Three layouts: LLaVA as transformers writes it (one folder), LLaVA as its authors publish it (the tower in another
folder), and VILA's folders ``llm/ vision_tower/ mm_projector/``.
"""

from __future__ import annotations

from pathlib import Path

from export.layouts.description import Checkpoint
from export.layouts.llava_hf import read_llava_hf
from export.layouts.llava_original import read_llava_original
from export.layouts.reading import COPY, read_config
from export.layouts.vila import PARTS, read_vila
from runtime.errors import ExportError

__all__ = ["Checkpoint", "read_checkpoint"]
_SUPPORTED = (
    "LlavaForConditionalGeneration, LlavaLlamaForCausalLM and VILA's llm/ vision_tower/ mm_projector/ folders "
    "can be exported"
)


def read_checkpoint(root: Path) -> Checkpoint:
    """Reads configurations and the headers of weight files. Raises ExportError that names file, key and value."""
    if not root.is_dir():
        raise ExportError(f"{root}: no such folder", hint="name the folder that holds config.json")
    config = read_config(root / "config.json")
    architecture = (config.get("architectures") or [config.get("model_type")])[0]
    three_folders = all((root / part).is_dir() for part in PARTS) or "llm_cfg" in config
    # Releases name their top class in many ways (LlavaLlamaModel, VILAForCausalLM, NVILAQwen2), none at all included.
    if three_folders and (architecture is None or str(architecture).lower().startswith(("llava", "vila", "nvila"))):
        for part in PARTS:
            if not (root / part).is_dir():
                raise ExportError(f"{root / part}: this folder of the checkpoint is missing", hint=COPY)
        return read_vila(root, config)
    if architecture in ("LlavaForConditionalGeneration", "llava") and "text_config" in config:
        return read_llava_hf(root, config)
    if architecture in ("LlavaLlamaForCausalLM", "LlavaForCausalLM"):
        return read_llava_original(root, config)
    raise ExportError(f"{root / 'config.json'}: unknown architecture {architecture!r}", hint=_SUPPORTED)
