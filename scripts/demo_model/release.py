"""Trained weights in the released layouts, fp16 safetensors, and back again for evaluation.

`demo-llava` is transformers' LLaVA layout with the key names of llava-1.5-hf; `demo-nvila` is VILA's: a top
config.json and the folders `llm/`, `vision_tower/` and `mm_projector/`, of which transformers opens the first two
by itself.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPImageProcessorPil, LlavaConfig, PreTrainedTokenizerFast, SiglipImageProcessorPil

from scripts.demo_model import checkpoint
from scripts.demo_model.architecture import (
    MEAN,
    PICTURE_PX,
    STD,
    DemoModel,
    clip_config,
    llama_config,
    qwen2_config,
    siglip_config,
)
from scripts.demo_model.card import training_record
from scripts.demo_model.packing import Packer
from scripts.demo_model.pictures import MAX_TILES, TILE_PX, Family
from scripts.demo_model.vocabulary import CLASSES, IMAGE, build_tokenizer, load_tokenizer

MAX_BYTES = 8_000_000


def export_run(family: Family, run: Path, out: Path, note: str = "") -> None:
    """Write the weights and the record of a training run to `out`, in the family's layout."""
    model = DemoModel(family)
    checkpoint.load(run / checkpoint.STATE, model)
    export(model, build_tokenizer(family), out)
    _json(out / "training.json", training_record(family, run, note))


def export(model: DemoModel, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write config, weights, tokenizer and preprocessing to `out`; AssertionError above 8 MB."""
    out.mkdir(parents=True, exist_ok=True)
    (_export_llava if model.family == "demo-llava" else _export_nvila)(model, tokenizer, out)
    size = sum(path.stat().st_size for path in checkpoint_files(out))
    assert size <= MAX_BYTES, f"{out}: {size} bytes, the limit is {MAX_BYTES}"


def checkpoint_files(directory: Path) -> list[Path]:
    """The files of a released checkpoint, without graphs traced from it (`onnx/`)."""
    return [path for path in directory.rglob("*") if path.is_file() and "onnx" not in path.parts]


def load_for_evaluation(family: Family, directory: Path) -> tuple[DemoModel, Packer]:
    """(fp32 model, packer) from a released directory, or from a training run's."""
    model = DemoModel(family).eval()
    if (directory / checkpoint.STATE).exists():
        checkpoint.load(directory / checkpoint.STATE, model)
        return model, Packer(build_tokenizer(family), family)
    if family == "demo-llava":
        tensors = load_file(directory / "model.safetensors")
        model.load_state_dict({_ours_llava(key): value.float() for key, value in tensors.items()})
        return model, Packer(load_tokenizer(directory), family)
    state: dict[str, Tensor] = {}
    parts = {"llm": ("llm.", ""), "vision_tower": ("vision.", "vision_model."), "mm_projector": ("projector.", "")}
    for folder, (prefix, theirs) in parts.items():
        tensors = load_file(directory / folder / "model.safetensors")
        state |= {prefix + key.removeprefix(theirs): value.float() for key, value in tensors.items()}
    model.load_state_dict(state)
    return model, Packer(load_tokenizer(directory / "llm"), family)


_LLAVA_NAMES = (  # ours, theirs
    ("vision.", "vision_tower.vision_model."),
    ("projector.", "multi_modal_projector."),
    ("llm.", "language_model."),
)


def _theirs_llava(key: str) -> str:
    return next(theirs + key.removeprefix(ours) for ours, theirs in _LLAVA_NAMES if key.startswith(ours))


def _ours_llava(key: str) -> str:
    return next(ours + key.removeprefix(theirs) for ours, theirs in _LLAVA_NAMES if key.startswith(theirs))


def _export_llava(model: DemoModel, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    ids = _token_ids(tokenizer)
    image_id = tokenizer.convert_tokens_to_ids(IMAGE)
    config = LlavaConfig(
        vision_config=clip_config().to_dict(), text_config=llama_config().to_dict() | ids, image_token_index=image_id,
        vision_feature_layer=-2, vision_feature_select_strategy="default", projector_hidden_act="gelu",
        image_seq_length=(PICTURE_PX // 16) ** 2, architectures=["LlavaForConditionalGeneration"],
    )  # fmt: skip
    config.dtype = "float16"
    config.save_pretrained(out)
    _weights({_theirs_llava(key): value for key, value in model.state_dict().items()}, out)
    _generation(ids, out)
    side = {"height": PICTURE_PX, "width": PICTURE_PX}
    CLIPImageProcessorPil(
        size=side, crop_size=side, do_center_crop=False, resample=3,
        image_mean=[MEAN["demo-llava"]] * 3, image_std=[STD["demo-llava"]] * 3,
    ).save_pretrained(out)  # fmt: skip
    _fix_processor_type(out, "CLIPImageProcessor")
    _json(
        out / "processor_config.json",
        {
            "image_token": IMAGE,
            "num_additional_image_tokens": 1,
            "patch_size": 16,
            "processor_class": "LlavaProcessor",
            "vision_feature_select_strategy": "default",
        },
    )
    _tokenizer(tokenizer, out, model.family)


def _export_nvila(model: DemoModel, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    parts = {folder: out / folder for folder in ("llm", "vision_tower", "mm_projector")}
    for folder in parts.values():
        folder.mkdir(exist_ok=True)
    ids = _token_ids(tokenizer)
    llm = qwen2_config()
    llm.update(ids | {"architectures": ["Qwen2ForCausalLM"], "dtype": "float16"})
    llm.save_pretrained(parts["llm"])
    _generation(ids, parts["llm"])
    _tokenizer(tokenizer, parts["llm"], model.family)
    tower = siglip_config()
    tower.update({"architectures": ["SiglipVisionModel"], "dtype": "float16"})
    tower.save_pretrained(parts["vision_tower"])
    half, side = [0.5, 0.5, 0.5], {"height": TILE_PX, "width": TILE_PX}
    processor = SiglipImageProcessorPil(size=side, resample=3, image_mean=half, image_std=half)
    processor.save_pretrained(parts["vision_tower"])
    _fix_processor_type(parts["vision_tower"], "SiglipImageProcessor")
    projector = {"architectures": ["MultimodalProjector"], "model_type": "v2l_projector"}
    projector |= {"mm_projector_type": "mlp_downsample"}
    _json(parts["mm_projector"] / "config.json", projector | {"dtype": "float16"})
    _weights(model.llm.state_dict(), parts["llm"])
    _weights({"vision_model." + key: value for key, value in model.vision.state_dict().items()}, parts["vision_tower"])
    _weights(model.projector.state_dict(), parts["mm_projector"])
    written = {name: _read(parts[name] / "config.json") for name in ("llm", "vision_tower")}
    _json(out / "config.json", _vila_config(written["llm"], written["vision_tower"], projector))


def _vila_config(llm: dict[str, Any], tower: dict[str, Any], projector: dict[str, Any]) -> dict[str, Any]:
    """The top config.json with the keys of NVILA-8B, values of this model."""
    return {
        "architectures": ["LlavaLlamaModel"],
        "chat_template": None,
        "dynamic_s2": True,
        "fps": 0.0,
        "hidden_size": llm["hidden_size"],
        "image_aspect_ratio": "dynamic_s2",
        "image_encoder": '{"_target_": "llava.model.encoders.BasicImageEncoder"}',
        "interpolate_mode": "linear",
        "llm_cfg": llm,
        "max_tiles": MAX_TILES,
        "min_tiles": 1,
        "mm_hidden_size": 2 * tower["hidden_size"],
        "mm_projector_cfg": projector,
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "cls_patch",
        "mm_vision_select_layer": -2,
        "model_dtype": "torch.float16",
        "model_type": "llava_llama",
        "num_video_frames": 8,
        "resume_path": None,
        "s2": False,
        "s2_max_split_size": TILE_PX,
        "s2_resize_output_to_scale_idx": -1,
        "s2_scales": f"{TILE_PX},{2 * TILE_PX}",
        "video_encoder": '{"_target_": "llava.model.encoders.BasicVideoEncoder"}',
        "vision_resolution": -1,
        "vision_tower_cfg": tower,
    }


def _token_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int | None]:
    return {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _weights(tensors: dict[str, Tensor], folder: Path) -> None:
    half = {key: value.detach().to("cpu", torch.float16).contiguous() for key, value in tensors.items()}
    save_file(half, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)


def _generation(ids: dict[str, int | None], folder: Path) -> None:
    _json(folder / "generation_config.json", {"do_sample": False, "max_new_tokens": 48} | ids)


def _fix_processor_type(folder: Path, name: str) -> None:
    """The released name of the image processor, not that of the backend which happened to be installed."""
    path = folder / "preprocessor_config.json"
    _json(path, _read(path) | {"image_processor_type": name})


def _tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path, family: Family) -> None:
    """Saved under a class name that transformers 4 and 5 both know."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    _json(path, _read(path) | {"tokenizer_class": CLASSES[family]})


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
