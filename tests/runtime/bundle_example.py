"""A small valid manifest, and a bundle directory around it, for tests of what reads bundles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from runtime.bundle import Bundle, Manifest, load_bundle, parse_manifest, write_bundle

FILES = {
    "tokenizer.json": b"{}",
    "vision_tower.onnx": b"tower",
    "vision_projector.onnx": b"projector",
    "decoder/decoder.onnx": b"decoder",
    "decoder/decoder.onnx.data": b"data",
    "decoder/token_embeds.bin": b"\0" * 64,
}


def manifest_json() -> dict[str, Any]:
    """A fresh copy of a manifest of schema 3 as JSON objects."""
    return {
        "schema": 3,
        "source": {"name": "tiny", "family": "llava", "digest": "0" * 64, "tool": "jetson-vlm 0.1.0"},
        "files": {name: {"bytes": len(data), "sha256": "0" * 64} for name, data in FILES.items()},
        "vision": {
            "tower": {
                "file": "vision_tower.onnx",
                "input": "tiles",
                "output": "features",
                "tile_px": 32,
                "patches_per_tile": 4,
                "channels": 8,
                "precision": "fp32",
            },
            "projector": {
                "file": "vision_projector.onnx",
                "input": "features",
                "output": "image_embeds",
                "scale_inputs": [],
            },
            "preprocess": {
                "mode": "resize",
                "resample": "bicubic",
                "shortest_edge_px": None,
                "rescale": 0.00392156862745098,
                "mean": [0.5, 0.5, 0.5],
                "std": [0.5, 0.5, 0.5],
                "pad_rgb": None,
            },
            "tiling": {
                "tile_px": 32,
                "patches_per_side": 2,
                "min_tiles": 1,
                "max_tiles": 1,
                "use_thumbnail": False,
                "scales_px": [],
                "resize_output_to_scale_idx": 0,
                "downsample": 1,
                "tile_all": False,
                "video_frames": 4,
            },
        },
        "prompt": {
            "tokenizer": "tokenizer.json",
            "bos_ids": [],
            "prefix": "<s>",
            "default_system": None,
            "roles": {
                "system": {"open": "", "close": "\n", "trim": False},
                "user": {"open": "USER: ", "close": " ", "trim": False},
                "assistant": {"open": "ASSISTANT: ", "close": "</s>", "trim": False},
            },
            "generation_prompt": "ASSISTANT:",
            "stop_ids": [2],
            "special_tokens": {"<s>": 1, "</s>": 2, "<image>": 3},
            "image": {
                "token": "<image>",
                "token_id": 3,
                "begin_ids": [],
                "end_ids": [],
                "text_after": "\n",
                "text_after_untiled": "\n",
                "video_text_after": "\n",
                "each_tile": False,
                "placement": "inline",
                "text_joint": "",
            },
            "context_tokens": 64,
        },
        "decoder": {
            "kinds": ["onnx"],
            "hidden": 4,
            "layers": 1,
            "heads": 2,
            "kv_heads": 1,
            "head_dim": 2,
            "ffn": 8,
            "vocab": 8,
            "max_seq_len": 64,
            "rope_theta": 10000.0,
            "rope_frequencies": [1.0],
            "rms_eps": 1e-05,
            "onnx": {"file": "decoder/decoder.onnx", "data": "decoder/decoder.onnx.data", "accuracy_level": 4},
            "t16": None,
            "token_embeds": {"file": "decoder/token_embeds.bin", "dtype": "f16", "shape": [8, 4]},
        },
        "quantization": {"bits": 4, "group_size": 128, "method": "rtn", "digest": "0" * 64, "head_bits": 4},
        "checks": {"tower_max_error": 1e-6, "projector_max_error": 1e-6, "limits": {}, "prompt_conversations": 50},
    }


def example_manifest() -> Manifest:
    return parse_manifest(manifest_json())


def fill_example(directory: Path) -> Manifest:
    """Writes the example's files into a directory, as `write_bundle` wants it."""
    for name, data in FILES.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return example_manifest()


def example_bundle(path: Path) -> Bundle:
    write_bundle(path, fill_example)
    return load_bundle(path)
