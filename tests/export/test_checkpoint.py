"""A checkpoint is recognised by its configuration, read without torch, and refused by the key that is wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from export.checkpoint import Checkpoint, read_checkpoint
from export.fingerprint import Fingerprint
from runtime.errors import ExportError
from tests.export.small_checkpoints import put, write_llava, write_nvila


def edit(path: Path, **changes: Any) -> None:
    value = json.loads(path.read_text())
    for key, item in changes.items():
        if item is ...:
            del value[key]
        else:
            value[key] = item
    put(path, value)


def test_llava_folder_is_read(tmp_path: Path) -> None:
    checkpoint = read_checkpoint(write_llava(tmp_path / "llava"))
    assert (checkpoint.family, checkpoint.name) == ("llava", "llava")
    assert (checkpoint.patches_per_tile, checkpoint.channels) == (16, 16), "the class token is dropped"
    assert checkpoint.preprocess.mode == "resize"
    assert checkpoint.tiling.scales_px == ()
    assert checkpoint.tiling.patches_per_side == 4


def test_class_token_is_kept_where_the_strategy_says_so(tmp_path: Path) -> None:
    root = write_llava(tmp_path / "llava")
    edit(root / "config.json", vision_feature_select_strategy="full", vision_feature_layer=[-2, -1])
    checkpoint = read_checkpoint(root)
    assert (checkpoint.patches_per_tile, checkpoint.channels) == (17, 32)


def test_vila_folders_are_read(tmp_path: Path) -> None:
    checkpoint = read_checkpoint(write_nvila(tmp_path / "nvila"))
    tiling = checkpoint.tiling
    assert checkpoint.family == "nvila"
    assert checkpoint.preprocess.mode == "dynamic_s2"
    assert (tiling.scales_px, tiling.resize_output_to_scale_idx, tiling.downsample) == ((28, 56), -1, 2)
    assert (tiling.min_tiles, tiling.max_tiles, tiling.video_frames, tiling.use_thumbnail) == (1, 6, 4, False)
    assert (checkpoint.prompt.start_text, checkpoint.prompt.end_text) == ("", "\n")
    assert all(path.parts[-2] != "llm" for path in checkpoint.vision_files)


def test_plain_tiles_have_a_thumbnail_and_stand_one_by_one_in_the_prompt(tmp_path: Path) -> None:
    root = write_nvila(tmp_path / "n", image_aspect_ratio="dynamic", dynamic_s2=False)
    checkpoint = read_checkpoint(root)
    assert (checkpoint.preprocess.mode, checkpoint.tiling.use_thumbnail, checkpoint.prompt.each_tile) == (
        "dynamic",
        True,
        True,
    )
    assert checkpoint.tiling.scales_px == ()


@pytest.mark.parametrize(("aspect", "mode"), [("resize", "resize"), ("pad", "pad"), (None, "resize")])
def test_single_tiles_follow_the_aspect_setting(tmp_path: Path, aspect: str | None, mode: str) -> None:
    checkpoint = read_checkpoint(write_nvila(tmp_path / "n", image_aspect_ratio=aspect, dynamic_s2=False))
    assert checkpoint.preprocess.mode == mode
    assert checkpoint.preprocess.pad_rgb == ((127, 127, 127) if mode == "pad" else None)


@pytest.mark.parametrize(
    ("kind", "rate"),
    [("linear", 1), ("identity", 1), ("mlp2x_gelu", 1), ("mlp_downsample_2x2_fix", 2), ("mlp_downsample_3x3_fix", 3)],
)
def test_projector_type_gives_the_downsampling_rate(tmp_path: Path, kind: str, rate: int) -> None:
    root = write_nvila(tmp_path / "n")
    put(root / "mm_projector" / "config.json", {"mm_projector_type": kind})
    edit(root / "vision_tower" / "config.json", hidden_size=64)  # with two scales as wide as the decoder
    assert read_checkpoint(root).tiling.downsample == rate


@pytest.mark.parametrize(
    ("file", "changes", "reason"),
    [
        ("config.json", {"ps3": True}, "PS3"),
        ("config.json", {"s2_scales": "28,wide"}, "s2_scales"),
        ("config.json", {"s2_scales": "56,112"}, "begin with 56"),
        ("config.json", {"max_tiles": "12"}, "max_tiles"),
        ("config.json", {"image_encoder": "{"}, "image_encoder"),
        ("config.json", {"image_encoder": {"_target_": "os.system"}}, "image_encoder"),
        ("config.json", {"image_encoder": {"_target_": "BasicImageEncoder", "end_tokens": 3}}, "image_encoder"),
        ("mm_projector/config.json", {"mm_projector_type": "qformer"}, "mm_projector_type"),
        ("mm_projector/config.json", {"mm_projector_type": "mlp-1x_gelu"}, "mm_projector_type"),
        ("vision_tower/config.json", {"architectures": ["InternVisionModel"]}, "vision tower 'InternVisionModel'"),
        ("vision_tower/config.json", {"image_size": 0}, "image_size"),
        ("vision_tower/config.json", {"patch_size": 56}, "patches of 56 px"),
        ("vision_tower/preprocessor_config.json", {"resample": "cubic"}, "resample"),
        ("config.json", {"architectures": ["PaliGemma"]}, "unknown architecture 'PaliGemma'"),
    ],
)
def test_wrong_vila_setting_is_refused_by_its_key(tmp_path: Path, file: str, changes: Any, reason: str) -> None:
    root = write_nvila(tmp_path / "n")
    edit(root / file, **changes)
    with pytest.raises(ExportError, match=reason):
        read_checkpoint(root)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}, "unknown architecture 'GPT2LMHeadModel'"),
        ({"projector_hidden_act": "relu"}, "projector with 'relu'"),
        ({"multimodal_projector_bias": False}, "bias False"),
        ({"vision_feature_select_strategy": "half"}, "select_strategy"),
        ({"vision_config": {"model_type": "vit"}}, "vision tower 'vit'"),
        ({"vision_config": ...}, "unknown vision tower"),
    ],
)
def test_wrong_llava_setting_is_refused_by_its_key(tmp_path: Path, changes: Any, reason: str) -> None:
    root = write_llava(tmp_path / "l")
    edit(root / "config.json", **changes)
    with pytest.raises(ExportError, match=reason):
        read_checkpoint(root)


def test_processor_that_does_not_fit_the_tower_is_refused(tmp_path: Path) -> None:
    root = write_llava(tmp_path / "l")
    edit(root / "preprocessor_config.json", size={"height": 32, "width": 32})
    with pytest.raises(ExportError, match="32 px, the vision tower takes 28 px"):
        read_checkpoint(root)


def test_pickle_checkpoint_is_refused_with_the_command_that_converts_it(tmp_path: Path) -> None:
    root = write_llava(tmp_path / "l")
    (root / "model.safetensors").rename(root / "pytorch_model.bin")
    with pytest.raises(ExportError, match=r"pytorch_model\.bin") as refused:
        read_checkpoint(root)
    assert "convert" in (refused.value.hint or "")


@pytest.mark.parametrize("part", ["llm", "vision_tower", "mm_projector"])
def test_missing_folder_and_weights_are_named(tmp_path: Path, part: str) -> None:
    root = write_nvila(tmp_path / "n", llm_cfg={})
    (root / part / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}")
    with pytest.raises(ExportError, match=part):
        read_checkpoint(root)
    (root / part / "model.safetensors").unlink()
    with pytest.raises(ExportError, match=part):
        read_checkpoint(root)
    shutil.rmtree(root / part)
    with pytest.raises(ExportError, match=part):
        read_checkpoint(root)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"a": NaN}'])
def test_damaged_configuration_is_refused(tmp_path: Path, content: str) -> None:
    root = write_llava(tmp_path / "l")
    (root / "config.json").write_text(content)
    with pytest.raises(ExportError, match=r"config\.json"):
        read_checkpoint(root)
    with pytest.raises(ExportError, match="no such folder"):
        read_checkpoint(tmp_path / "nowhere")


def test_digest_follows_contents_and_names_and_not_the_place(tmp_path: Path) -> None:
    def digest(root: Path) -> str:
        checkpoint: Checkpoint = read_checkpoint(root)
        return Fingerprint(root, checkpoint.files).of(checkpoint.files)

    root = write_nvila(tmp_path / "n")
    first = digest(root)
    shutil.copytree(root, tmp_path / "elsewhere")
    assert digest(tmp_path / "elsewhere") == first
    (root / "README.md").write_text("not part of it")
    assert digest(root) == first
    edit(root / "llm" / "tokenizer_config.json", model_max_length=64)
    assert digest(root) != first
