"""LLaVA as its authors publish it: where its tower lies, what its prompt is, and what cannot be exported."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from export.checkpoint import read_checkpoint
from export.decoder import open_decoder_checkpoint
from export.estimate import estimate_bytes
from export.fingerprint import Fingerprint
from export.layouts.llava_original import RANGE, range_file
from export.manifest_groups import prompt_request
from export.prompt_export import export_prompt
from models.chat_templates import VICUNA_V1
from runtime.errors import ExportError
from tests.export.small_checkpoints import SIGLIP, VOCAB, put, write_original_llava


def test_folder_is_read(tmp_path: Path) -> None:
    root = write_original_llava(tmp_path / "llava", mm_vision_select_layer=[-2, -1])
    checkpoint = read_checkpoint(root)
    assert (checkpoint.family, checkpoint.layout, checkpoint.tower) == (
        "llava",
        "llava-original",
        root / "vision_tower",
    )
    assert (checkpoint.patches_per_tile, checkpoint.channels) == (16, 32)
    assert (checkpoint.preprocess.mode, checkpoint.preprocess.pad_rgb) == ("pad", (127, 127, 127))
    assert root / "vision_tower" / "model.safetensors" in checkpoint.vision_files
    assert root / "model.safetensors" in checkpoint.vision_files, "the projector's weights are there"


def test_class_token_is_kept_where_the_feature_says_so(tmp_path: Path) -> None:
    root = write_original_llava(tmp_path / "l", mm_vision_select_feature="cls_patch", image_aspect_ratio=None)
    checkpoint = read_checkpoint(root)
    assert (checkpoint.patches_per_tile, checkpoint.preprocess.mode) == (17, "resize")


def test_trained_tower_among_the_weights_needs_none_in_its_folder(tmp_path: Path) -> None:
    root = write_original_llava(tmp_path / "l")
    weights = load_file(root / "model.safetensors")
    trained = {"model.vision_tower.vision_tower.vision_model.post_layernorm.bias": np.zeros(4, np.float16)}
    save_file({**weights, **trained}, root / "model.safetensors")
    (root / "vision_tower" / "model.safetensors").unlink()
    assert root / "vision_tower" / "config.json" in read_checkpoint(root).vision_files


@pytest.mark.parametrize("name", ["vision_tower", "elsewhere/clip-vit", "openai/clip-vit"])
def test_tower_lies_inside_at_a_path_or_in_the_local_cache(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_original_llava(tmp_path / "l")
    tower = root / "vision_tower"
    if name == "elsewhere/clip-vit":
        tower = tmp_path / name
        name = str(tower)
    elif name == "openai/clip-vit":
        snapshot = tmp_path / "hub" / "models--openai--clip-vit"
        tower = snapshot / "snapshots" / "0123456789abcdef"
        put(snapshot / "refs" / "main", tower.name)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    if tower != root / "vision_tower":
        tower.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(root / "vision_tower", tower)
    put(root / "config.json", {**json.loads((root / "config.json").read_text()), "mm_vision_tower": name})
    checkpoint = read_checkpoint(root)
    assert checkpoint.tower.resolve() == tower.resolve()
    before = Fingerprint(root, checkpoint.files).of(checkpoint.vision_files)
    put(tower / "config.json", {**json.loads((tower / "config.json").read_text()), "note": 1})
    assert Fingerprint(root, checkpoint.files).of(checkpoint.vision_files) != before, "it belongs to the key"


def test_prompt_is_vicunas_with_a_placeholder_beyond_the_vocabulary(tmp_path: Path) -> None:
    root = write_original_llava(tmp_path / "l")
    request = prompt_request(read_checkpoint(root), 128, None)
    assert request.default_template == VICUNA_V1
    section = export_prompt(request).section
    assert section.default_system is not None
    assert section.default_system.startswith("A chat between a curious user")
    known = json.loads((root / "tokenizer.json").read_text())
    last = max([*known["model"]["vocab"].values(), *(item["id"] for item in known["added_tokens"])])
    assert section.image.token_id == last + 1 < VOCAB
    assert (section.image.text_after, section.image.video_text_after) == ("\n", "\n")
    assert (section.image.begin_ids, section.image.end_ids) == ((), ())


def test_start_and_end_tokens_stand_around_the_picture_or_are_missed_by_name(tmp_path: Path) -> None:
    root = write_original_llava(tmp_path / "l", mm_use_im_start_end=True)
    with pytest.raises(ExportError, match="no token <im_start>"):
        read_checkpoint(root)
    tokenizer = json.loads((root / "tokenizer.json").read_text())
    first = max(tokenizer["model"]["vocab"].values()) + 10
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    for index, token in enumerate(("<im_start>", "<im_end>")):
        tokenizer["model"]["vocab"][token] = first + index
        tokenizer["added_tokens"].append({"id": first + index, "content": token, **plain})
    put(root / "tokenizer.json", tokenizer)
    image = export_prompt(prompt_request(read_checkpoint(root), 128, None)).section.image
    assert (image.begin_ids, image.end_ids) == ((first,), (first + 1,))


def test_range_of_linearclip_is_among_the_weights_or_in_its_file(tmp_path: Path) -> None:
    root = write_original_llava(
        tmp_path / "l", mm_projector_type="linearclip", min_max_range_path="/train/emb_min_max.pt"
    )
    with pytest.raises(ExportError, match=r"1\.min nor the range file '/train/emb_min_max\.pt'"):
        read_checkpoint(root)
    limits = {"min": np.zeros(4, np.float32), "max": np.ones(4, np.float32)}
    save_file(limits, root / "emb_min_max.safetensors")
    config = json.loads((root / "config.json").read_text())
    assert range_file(root, config) == root / "emb_min_max.safetensors" in read_checkpoint(root).vision_files
    weights = load_file(root / "model.safetensors")
    save_file({**weights, **dict(zip(RANGE, limits.values(), strict=True))}, root / "model.safetensors")
    assert root / "emb_min_max.safetensors" not in read_checkpoint(root).vision_files


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"image_aspect_ratio": "anyres"}, "image_aspect_ratio is 'anyres'"),
        ({"s2": True}, "s2 with LLaVA's own layout"),
        ({"mm_vision_select_feature": "cls"}, "mm_vision_select_feature is 'cls'"),
        ({"mm_vision_select_layer": None}, "mm_vision_select_layer is None"),
        ({"mm_vision_select_layer": []}, "mm_vision_select_layer is"),
        ({"mm_projector_type": "mlp_downsample"}, "mm_projector_type is 'mlp_downsample'"),
        ({"mm_projector_type": "mlp2x_gelux"}, "mm_projector_type is 'mlp2x_gelux'"),
        ({"mm_vision_tower": None}, "mm_vision_tower is None"),
        ({"mm_projector_type": "identity"}, "identity projector of 16 channels, the decoder takes 128"),
        ({"architectures": ["LlavaMistralForCausalLM"]}, "unknown architecture 'LlavaMistralForCausalLM'"),
    ],
)
def test_what_cannot_be_exported_is_refused_by_its_key(tmp_path: Path, changes: Any, reason: str) -> None:
    with pytest.raises(ExportError, match=reason):
        read_checkpoint(write_original_llava(tmp_path / "l", **changes))


@pytest.mark.parametrize("name", ["openai/nobodys-clip", "/train/nobodys-clip", "not/a/hub/name/nobodys-clip"])
def test_tower_that_is_nowhere_is_refused_with_what_to_do(tmp_path: Path, name: str) -> None:
    root = write_original_llava(tmp_path / "l", mm_vision_tower=name)
    shutil.rmtree(root / "vision_tower")
    with pytest.raises(ExportError, match="no folder and not in the local Hugging Face cache") as refused:
        read_checkpoint(root)
    assert str(root / "nobodys-clip") in (refused.value.hint or "")


def test_siglip_tower_and_tiles_of_another_size_are_refused(tmp_path: Path) -> None:
    root = write_original_llava(tmp_path / "l")
    processor = json.loads((root / "vision_tower" / "preprocessor_config.json").read_text())
    put(root / "vision_tower" / "preprocessor_config.json", {**processor, "size": {"height": 32, "width": 32}})
    with pytest.raises(ExportError, match="32 px, the vision tower takes 28 px"):
        read_checkpoint(root)
    put(root / "vision_tower" / "config.json", SIGLIP)
    with pytest.raises(ExportError, match="a SigLIP tower"):
        read_checkpoint(root)


def test_size_of_the_bundle_counts_the_tower_in_its_own_folder_and_the_projector(tmp_path: Path) -> None:
    root = write_original_llava(tmp_path / "l")

    def estimate() -> int:
        with open_decoder_checkpoint(root) as decoder:
            return estimate_bytes(read_checkpoint(root), decoder, 32)

    before = estimate()
    tower, projector = np.zeros(5000, np.float16), np.zeros(3000, np.float16)
    save_file({"weight": tower}, root / "vision_tower" / "model.safetensors")
    weights = load_file(root / "model.safetensors")
    save_file({**weights, "model.mm_projector.2.weight": projector}, root / "model.safetensors")
    assert abs(estimate() - before - tower.nbytes - projector.nbytes) < 200, "but for headers"
