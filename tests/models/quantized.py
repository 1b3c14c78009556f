"""Quantised copies of tiny checkpoints in every stored layout, for tests."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from kernels import packing

# Layout -> its name in AutoAWQ's or GPTQ's settings, and what else these say.
CONFIGS: dict[str, dict[str, Any]] = {
    "autoawq-gemm": {"quant_method": "awq", "version": "gemm", "zero_point": True, "bits": 4},
    "autoawq-gemv": {"quant_method": "awq", "version": "gemv", "zero_point": True, "bits": 4},
    "gemv_fast": {"quant_method": "awq", "version": "gemv_fast", "zero_point": True, "bits": 4},
    "llm-awq-v2": {"quant_method": "awq", "version": "gemv", "backend": "llm-awq", "zero_point": True, "bits": 4},
    "gptq": {"quant_method": "gptq", "bits": 4, "desc_act": False, "sym": False, "checkpoint_format": "gptq"},
    "compressed-tensors": {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "input_activations": None,
                "output_activations": None,
                "weights": {"num_bits": 4, "type": "int", "symmetric": False, "strategy": "group", "dynamic": False},
            }
        },
        "ignore": ["lm_head"],
    },
}


def is_decoder_linear(name: str) -> bool:
    """Whether a tensor is the weight of one of the seven linears of a decoder layer, under any prefix."""
    return name.endswith("_proj.weight") and "layers." in name and "vision_tower" not in name


def quantized_copy(
    source: Path, target: Path, layout: str, group_size: int = 32, head_bits: int | None = None, mark: bool = True
) -> tuple[Path, Path]:
    """A copy of a checkpoint with packed decoder linears, and one with the floats these stand for.

    ``group_size`` -1: whole rows. ``mark`` False: without quantization_config, as llm-awq's files are.
    """
    packed, floats = target / "packed", target / "floats"
    for copy in (packed, floats):
        shutil.copytree(source, copy)
    folder = "llm" if (source / "llm").is_dir() else "."
    tensors = load_file(source / folder / "model.safetensors")
    ours, theirs = {}, {}
    for name, tensor in tensors.items():
        ours[name] = theirs[name] = tensor
        if is_decoder_linear(name):
            weight = packing.quantize_nearest(tensor.float().numpy(), group_size if group_size > 0 else tensor.shape[1])
            del ours[name]
            ours |= {f"{name.removesuffix('weight')}{k}": v for k, v in stored(weight, layout).items()}
            theirs[name] = torch.from_numpy(weight.dequantize()).to(tensor.dtype)
    save_file(ours, packed / folder / "model.safetensors", metadata={"format": "pt"})
    save_file(theirs, floats / folder / "model.safetensors", metadata={"format": "pt"})
    if mark:
        edit_json(packed / folder / "config.json", quantization_config=settings(layout, group_size))
    if head_bits is not None:
        (packed / "quantization.json").write_text(json.dumps({"method": "awq", "head_bits": head_bits}))
    return packed, floats


def stored(weight: packing.IntWeight, layout: str) -> dict[str, torch.Tensor]:
    """The tensors of a linear as a checkpoint of that layout has them."""
    arrays = packing.pack(weight, "llm-awq-v2" if layout == "gemv_fast" else layout)
    if layout == "gemv_fast":
        arrays["qzeros"] = arrays.pop("scaled_zeros")
    return {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}


def settings(layout: str, group_size: int) -> dict[str, Any]:
    """The quantization_config of a layout."""
    config: dict[str, Any] = json.loads(json.dumps(CONFIGS[layout]))
    if layout == "compressed-tensors":
        weights = config["config_groups"]["group_0"]["weights"]
        weights |= {"strategy": "channel"} if group_size < 0 else {"strategy": "group", "group_size": group_size}
    else:
        config["group_size"] = group_size
    return config


def edit_json(path: Path, **changes: Any) -> None:
    """Change fields of a JSON file; None takes one out."""
    fields = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in fields.items() if value is not None}))
