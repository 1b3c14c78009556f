"""VILA's folders: what the tower's graph takes and gives for each kind of S², and the settings that are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from export.checkpoint import read_checkpoint
from export.layouts.encoders import encoder_texts
from export.manifest_groups import prompt_request, vision_section
from models.chat_templates import HERMES_2, LLAMA_3, QWEN2, VICUNA_V1
from runtime.errors import ExportError
from tests.export.small_checkpoints import CLIP, put, write_nvila

STATIC = {"dynamic_s2": False, "s2": True, "s2_scales": "84,28,56", "image_aspect_ratio": "resize"}
# NVILA-Lite's config.json, apart from the parts' own settings.
LITE = {
    "image_aspect_ratio": "dynamic",
    "dynamic_s2": None,
    "s2": None,
    "s2_scales": None,
    "s2_max_split_size": None,
    "s2_resize_output_to_scale_idx": 0,
    "min_tiles": 1,
    "max_tiles": 12,
    "num_video_frames": 8,
    "fps": 0.0,
    "mm_use_im_start_end": False,
    "mm_use_im_patch_token": False,
    "model_dtype": "torch.bfloat16",
    "chat_template": None,
    "drop_path_rate": 0.0,
    "tune_vision_tower": True,
    "resume_path": "/train/checkpoint",
    "video_encoder": '{"_target_": "llava.model.encoders.BasicVideoEncoder"}',
}


@pytest.mark.parametrize(("index", "side"), [(0, 4), (None, 4), (1, 8), (-1, 12)])
def test_static_s2_takes_the_largest_scale_and_gives_one_map(tmp_path: Path, index: int | None, side: int) -> None:
    root = write_nvila(tmp_path / "n", **STATIC, s2_resize_output_to_scale_idx=index)
    put(root / "vision_tower" / "config.json", CLIP)
    checkpoint = read_checkpoint(root)
    tiling = checkpoint.tiling
    assert (tiling.tile_px, tiling.patches_per_side, tiling.scales_px) == (84, side, ())
    assert (checkpoint.patches_per_tile, checkpoint.channels) == (side**2, 48), "three maps, no class token"
    spec = vision_section(checkpoint, "fp32").tiling_spec()
    assert (spec.mode, spec.class_tokens, spec.tokens_per_block) == ("resize", 0, (side // 2) ** 2)


def test_processor_that_crops_squeezes_under_s2(tmp_path: Path) -> None:
    """The towers set the processor's size, height and width, so nothing is left to cut."""
    root = write_nvila(tmp_path / "n", **{**STATIC, "image_aspect_ratio": "anything"})
    put(root / "vision_tower" / "config.json", CLIP)
    processor = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 30}, "crop_size": 28}
    put(root / "vision_tower" / "preprocessor_config.json", processor)
    found = read_checkpoint(root)
    assert (found.preprocess.mode, found.preprocess.shortest_edge_px, found.tiling.tile_px) == ("resize", None, 84)


def test_dynamic_s2_that_is_shown_plain_tiles_repeats_them_for_the_projector(tmp_path: Path) -> None:
    checkpoint = read_checkpoint(write_nvila(tmp_path / "n", image_aspect_ratio="dynamic"))
    assert (checkpoint.preprocess.mode, checkpoint.repeats, checkpoint.tiling.scales_px) == ("dynamic", 2, ())
    assert read_checkpoint(write_nvila(tmp_path / "m")).repeats == 1


def test_settings_of_nvila_lite(tmp_path: Path) -> None:
    checkpoint = read_checkpoint(write_nvila(tmp_path / "n", **LITE))
    tiling, prompt = checkpoint.tiling, checkpoint.prompt
    assert (checkpoint.preprocess.mode, tiling.use_thumbnail, tiling.max_tiles) == ("dynamic", True, 12)
    assert (prompt.each_tile, prompt.text_after, prompt.end_text) == (True, "\n", "\n")
    assert (checkpoint.patches_per_tile, checkpoint.channels, tiling.video_frames) == (16, 16, 8)


def test_template_is_the_one_that_the_configuration_names_or_the_decoders(tmp_path: Path) -> None:
    root = write_nvila(tmp_path / "n")
    request = prompt_request(read_checkpoint(root), 128, None)
    assert (request.template, request.default_template) == (None, QWEN2)
    put(root / "llm" / "config.json", {**json.loads((root / "llm" / "config.json").read_text()), "model_type": "llama"})
    tokenizer = json.loads((root / "llm" / "tokenizer.json").read_text())
    for token, template in (("<s>", VICUNA_V1), ("<|start_header_id|>", LLAMA_3), ("<|im_start|>", HERMES_2)):
        put(root / "llm" / "tokenizer.json", {**tokenizer, "added_tokens": [{"content": token, "id": 600}]})
        assert read_checkpoint(root).prompt.default_template == template
    named = read_checkpoint(write_nvila(tmp_path / "m", chat_template="vicuna_v1"))
    assert prompt_request(named, 128, None).template == VICUNA_V1


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({**STATIC, "s2_scales": "28,70"}, "70 px of s2_scales cut into 3 pieces a side, the tower takes 28 px"),
        ({**STATIC, "s2_max_split_size": 20}, "28 px of s2_scales cut into 2 pieces"),
        ({**STATIC, "s2_resize_output_to_scale_idx": 3}, "scale_idx is 3 for 3 scales"),
        ({**STATIC, "s2_scales": None}, "s2_scales is None"),
        ({"s2_scales": "28,56,56"}, "expected different sizes"),
        ({"s2_scales": "28,70"}, "not multiples of 28 px"),
        ({"s2_resize_output_to_scale_idx": "last"}, "scale_idx is 'last'"),
        ({"min_tiles": 4, "max_tiles": 2}, "max_tiles is 2, below min_tiles 4"),
        ({"chat_template": "mistral"}, "unknown chat_template 'mistral'"),
        ({"video_encoder": {"_target_": "llava.model.encoders.TSPVideoEncoder"}}, "video_encoder is .*TSPVideoEncoder"),
        ({"image_encoder": {"end_tokens": None}}, "image_encoder writes .* video_encoder"),
    ],
)
def test_what_cannot_be_exported_is_refused_by_its_key(tmp_path: Path, changes: Any, reason: str) -> None:
    with pytest.raises(ExportError, match=reason):
        read_checkpoint(write_nvila(tmp_path / "n", **changes))


def test_identity_must_be_as_wide_as_the_decoder(tmp_path: Path) -> None:
    root = write_nvila(tmp_path / "n")
    put(root / "mm_projector" / "config.json", {"mm_projector_type": "identity"})
    with pytest.raises(ExportError, match="identity projector of 32 channels, the decoder takes 128"):
        read_checkpoint(root)


def test_encoders_tokens_are_read_from_text_or_table() -> None:
    both = {"_target_": "x.BasicImageEncoder", "start_tokens": "<a>", "end_tokens": None}
    video = {**both, "_target_": "x.BasicVideoEncoder"}
    config = {"image_encoder": json.dumps(both), "video_encoder": video}
    assert encoder_texts(Path("config.json"), config) == ("<a>", "")
    assert encoder_texts(Path("config.json"), {}) == ("", "\n")


def test_settings_of_a_quantised_checkpoint_pass(tmp_path: Path) -> None:
    """quantization_config is the decoder's; what export.quantize writes beside it belongs to the bundle's key."""
    root = write_nvila(tmp_path / "n", llm_cfg={"quantization_config": {"quant_method": "awq", "bits": 4}})
    put(root / "quantization.json", {"method": "awq", "head_bits": 8})
    assert root / "quantization.json" in read_checkpoint(root).files
