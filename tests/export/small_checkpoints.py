"""Small checkpoints without torch: configurations, random weights, a tokenizer, and a few bytes as stored graphs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from export.checkpoint import read_checkpoint
from export.decoder import open_decoder_checkpoint
from export.fingerprint import Fingerprint
from export.stages import traced_key
from export.vision.names import PROJECTOR_FILE, TOWER_FILE
from export.vision.stored import FOLDER, TracedGraphs, write_traced
from tests.decoder_models import Shape, with_shape
from tests.runtime.prompt_examples import CHATML_TEMPLATE, LLAVA_TEMPLATE, byte_level

SIGLIP = {
    "architectures": ["SiglipVisionModel"],
    "model_type": "siglip_vision_model",
    "hidden_size": 16,
    "image_size": 28,
    "patch_size": 7,
    "num_hidden_layers": 3,
}
CLIP = {"model_type": "clip_vision_model", "hidden_size": 16, "image_size": 28, "patch_size": 7}
PROCESSOR = {
    "image_processor_type": "SiglipImageProcessor",
    "size": {"height": 28, "width": 28},
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "resample": 3,
    "rescale_factor": 1 / 255,
}
LLAVA_SPECIALS = ["<s>", "</s>", "<image>"]
CHATML_SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>"]
VOCAB = 512


def put(path: Path, value: Any) -> None:
    """Writes JSON or text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")


def write_llava(root: Path, **decoder: Any) -> Path:
    """transformers' LLaVA layout: CLIP, two linear layers, Llama; ``decoder`` changes its shape."""
    shape = with_shape(vocab=VOCAB, **decoder)
    config = {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "image_token_index": _tokenizer(root, LLAVA_SPECIALS, LLAVA_TEMPLATE, "</s>"),
        "projector_hidden_act": "gelu",
        "vision_config": CLIP,
        "text_config": shape.config(),
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
    }
    put(root / "config.json", config)
    processor = {**PROCESSOR, "image_processor_type": "CLIPImageProcessor", "do_center_crop": False}
    put(root / "preprocessor_config.json", processor)
    weights = {f"language_model.{name}": value for name, value in shape.weights().items()}
    save_file(weights | _vision("vision_tower.") | _vision("multi_modal_projector."), root / "model.safetensors")
    return root


def write_original_llava(root: Path, **changes: Any) -> Path:
    """LLaVA's own layout: CLIP in a folder inside, a tokenizer without image token and template."""
    shape = Shape(vocab=VOCAB)
    put(root / "vision_tower" / "config.json", CLIP)
    processor = {**PROCESSOR, "image_processor_type": "CLIPImageProcessor", "do_center_crop": False}
    put(root / "vision_tower" / "preprocessor_config.json", processor)
    save_file(_vision(""), root / "vision_tower" / "model.safetensors")
    tokenizer = byte_level(LLAVA_SPECIALS[:2])
    put(root / "tokenizer.json", tokenizer.to_str())
    put(root / "tokenizer_config.json", {"bos_token": "<s>", "eos_token": "</s>", "model_max_length": 128})
    config = {
        **shape.config(),
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava",
        "mm_vision_tower": "vision_tower",
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_projector_type": "mlp2x_gelu",
        "image_aspect_ratio": "pad",
    }
    put(root / "config.json", {**config, **changes})
    save_file({**shape.weights(), **_vision("model.mm_projector.0.")}, root / "model.safetensors")
    return root


def write_nvila(root: Path, **changes: Any) -> Path:
    """VILA's three folders: SigLIP, mlp_downsample, Qwen2; ``changes`` go into config.json."""
    shape = Shape(family="qwen2", vocab=VOCAB)
    put(
        root / "config.json",
        {
            "architectures": ["LlavaLlamaModel"],
            "model_type": "llava_llama",
            "hidden_size": shape.hidden,
            "image_aspect_ratio": "dynamic_s2",
            "dynamic_s2": True,
            "s2_scales": "28,56",
            "s2_resize_output_to_scale_idx": -1,
            "min_tiles": 1,
            "max_tiles": 6,
            "mm_vision_select_layer": -2,
            "mm_vision_select_feature": "cls_patch",
            "image_encoder": json.dumps({"_target_": "llava.model.encoders.BasicImageEncoder"}),
            "num_video_frames": 4,
            **changes,
        },
    )
    put(root / "vision_tower" / "config.json", SIGLIP)
    put(root / "vision_tower" / "preprocessor_config.json", PROCESSOR)
    put(root / "mm_projector" / "config.json", {"mm_projector_type": "mlp_downsample"})
    put(root / "llm" / "config.json", shape.config())
    _tokenizer(root / "llm", CHATML_SPECIALS, CHATML_TEMPLATE, "<|im_end|>")
    save_file(shape.weights(), root / "llm" / "model.safetensors")
    for folder in ("vision_tower", "mm_projector"):
        save_file(_vision(""), root / folder / "model.safetensors")
    return root


def store_graphs(root: Path) -> Path:
    """Puts a few bytes in place of traced graphs, under the right key: the build copies graphs without reading them."""
    checkpoint = read_checkpoint(root)
    with open_decoder_checkpoint(root) as decoder:
        files = Fingerprint(root, (*checkpoint.files, *decoder.files))
    scratch = root.parent / f"{root.name}-graphs"
    scratch.mkdir(exist_ok=True)
    (scratch / TOWER_FILE).write_bytes(b"tower")
    (scratch / PROJECTOR_FILE).write_bytes(b"projector")
    write_traced(TracedGraphs(scratch, 1e-6, 2e-6, 1e-4), root / FOLDER, traced_key(files, checkpoint.vision_files))
    return root


def _tokenizer(folder: Path, specials: list[str], template: str, eos: str) -> int:
    tokenizer = byte_level(specials)
    put(folder / "tokenizer.json", tokenizer.to_str())
    names = {"eos_token": eos, "model_max_length": 128} | ({"bos_token": "<s>"} if "<s>" in specials else {})
    put(folder / "tokenizer_config.json", names)
    put(folder / "chat_template.jinja", template)
    return int(tokenizer.token_to_id("<image>"))


def _vision(prefix: str) -> dict[str, np.ndarray[Any, Any]]:
    return {f"{prefix}weight": np.arange(8, dtype=np.float16)}
