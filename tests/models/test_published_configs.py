"""Checkpoints with the configurations of released ones, scaled down: their keys, their names and shards."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig, LlavaForConditionalGeneration

from models.checkpoint import checkpoint_layout, load_checkpoint
from models.nvila import NVILAQwen2, VilaLlama
from models.s2_tower import SiglipVisionTowerDynamicS2
from models.vision_tower import CLIPVisionTower, SiglipVisionTower
from runtime.errors import ExportError, PromptError
from tests.models import tiny
from tests.models.quantized import edit_json

# llava-hf/llava-1.5-7b-hf; of text and tower it says no more than this, beside their sizes.
HF_LLAVA: dict[str, Any] = {
    "architectures": ["LlavaForConditionalGeneration"],
    "ignore_index": -100,
    "model_type": "llava",
    "projector_hidden_act": "gelu",
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "transformers_version": "4.36.0.dev0",
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
}
HF_TEXT: dict[str, Any] = {
    "_name_or_path": "lmsys/vicuna-7b-v1.5",
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "rms_norm_eps": 1e-05,
    "torch_dtype": "float16",
}
# liuhaotian/llava-v1.5-7b
ORIGINAL: dict[str, Any] = {
    "_name_or_path": "llava-v1.5-7b",
    "architectures": ["LlavaLlamaForCausalLM"],
    "freeze_mm_mlp_adapter": False,
    "freeze_mm_vision_resampler": False,
    "hidden_act": "silu",
    "image_aspect_ratio": "pad",
    "initializer_range": 0.02,
    "max_length": 4096,
    "mm_resampler_type": None,
    "mm_use_im_patch_token": False,
    "mm_use_im_start_end": False,
    "mm_vision_tower": "openai/clip-vit-large-patch14-336",
    "model_type": "llava",
    "pretraining_tp": 1,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "transformers_version": "4.31.0",
    "tune_mm_mlp_adapter": False,
    "tune_mm_vision_resampler": False,
    "unfreeze_mm_vision_tower": False,
    "use_cache": True,
    "use_mm_proj": True,
}
VILA: dict[str, Any] = {
    "_name_or_path": "./vlm",
    "architectures": ["LlavaLlamaModel"],
    "drop_path_rate": 0.0,
    "fps": 0.0,
    "interpolate_mode": "linear",
    "mm_projector_lr": None,
    "mm_use_im_patch_token": False,
    "mm_use_im_start_end": False,
    "mm_vision_select_feature": "cls_patch",
    "mm_vision_select_layer": -2,
    "model_dtype": "torch.bfloat16",
    "model_type": "llava_llama",
    "num_time_tokens": None,
    "num_video_frames": 8,
    "resume_path": "/data/runs/train/vlm",
    "s2_max_split_size": 336,
    "time_token_format": "<t{t}>",
    "transformers_version": "4.46.0",
    "tune_language_model": True,
    "tune_mm_projector": True,
    "tune_vision_tower": True,
    "vision_resolution": -1,
    "vision_tower_lr": None,
}
ENCODERS = {
    "image_encoder": '{"_target_": "llava.model.encoders.BasicImageEncoder"}',
    "video_encoder": '{"_target_": "llava.model.encoders.BasicVideoEncoder"}',
}
SHORT = GenerationConfig(max_new_tokens=4)
PROMPT = [tiny.picture(70, 40), "what is it?"]


def shards(folder: Path, count: int) -> None:
    """Split model.safetensors into shards and an index, as large releases have them."""
    tensors = list(load_file(folder / "model.safetensors").items())
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for number in range(count):
        name = f"model-{number + 1:05d}-of-{count:05d}.safetensors"
        part = dict(tensors[number::count])
        save_file(part, folder / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, name)
    total = sum(tensor.nbytes for _, tensor in tensors)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


# ---- LLaVA-1.5 in transformers' layout


def test_llava_hf_config_old_names_and_three_shards(checkpoints: Any, tmp_path: Path) -> None:
    source, directory = checkpoints("llava", kv_heads=2, dtype=torch.float16), tmp_path / "llava-1.5-7b-hf"
    shutil.copytree(source, directory)
    config = json.loads((source / "config.json").read_text())
    text = {k: config["text_config"][k] for k in ("vocab_size", "max_position_embeddings", "hidden_size")}
    text |= {k: config["text_config"][k] for k in ("intermediate_size", "num_attention_heads", "num_hidden_layers")}
    vision = {"model_type": "clip_vision_model", "projection_dim": 8, "vocab_size": 32000}
    for key in ("hidden_size", "image_size", "intermediate_size", "num_attention_heads", "num_hidden_layers"):
        vision[key] = config["vision_config"][key]
    vision["patch_size"] = config["vision_config"]["patch_size"]
    image = config["image_token_index"]
    fields = HF_LLAVA | {"text_config": HF_TEXT | text, "vision_config": vision, "vocab_size": text["vocab_size"]}
    fields |= {"image_token_index": image, "pad_token_id": config["text_config"]["pad_token_id"]}
    (directory / "config.json").write_text(json.dumps(fields))
    save_file(
        {_old_name(name): t for name, t in load_file(source / "model.safetensors").items()},
        directory / "model.safetensors",
        metadata={"format": "pt"},
    )
    shards(directory, 3)
    model, family = load_checkpoint(directory)
    assert family == "llava"
    assert model.config.num_key_value_heads == 2
    assert model.generate_content(PROMPT, SHORT) == load_checkpoint(source)[0].generate_content(PROMPT, SHORT)
    judge = LlavaForConditionalGeneration.from_pretrained(directory, dtype=torch.float32).eval()
    ids, pixels = model.prepare_prompt(PROMPT)
    theirs = torch.tensor([[x for i in ids[0].tolist() for x in ([image] * 16 if i == -200 else [i])]])
    with torch.no_grad():
        expected = judge(input_ids=theirs, pixel_values=pixels).logits
        torch.testing.assert_close(model(ids, images=pixels).logits, expected, atol=1e-5, rtol=1e-5)


def _old_name(name: str) -> str:
    """Names as transformers wrote them before 4.52."""
    plain = name.removeprefix("model.")
    if plain.startswith("vision_tower."):
        return f"vision_tower.vision_model.{plain.removeprefix('vision_tower.').removeprefix('vision_model.')}"
    if plain.startswith("multi_modal_projector."):
        return plain
    if "lm_head" in plain:
        return "language_model.lm_head.weight"
    return f"language_model.model.{plain.removeprefix('language_model.').removeprefix('model.')}"


def test_more_rows_than_the_configuration_says_are_refused(checkpoints: Any, tmp_path: Path) -> None:
    directory = tmp_path / "llava"
    shutil.copytree(checkpoints("llava"), directory)
    text = json.loads((directory / "config.json").read_text())["text_config"]
    edit_json(directory / "config.json", text_config=text | {"vocab_size": text["vocab_size"] - 2})
    with pytest.raises(ExportError, match=r"has shape \(\d+, 64\), not"):
        load_checkpoint(directory)


# ---- LLaVA-1.5 as its authors publish it


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: Any) -> Path:
    """A local Hugging Face cache, empty."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def into_cache(hub: Path, name: str, folder: Path) -> None:
    place, revision = hub / f"models--{name.replace('/', '--')}", "0" * 40
    shutil.copytree(folder, place / "snapshots" / revision)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(revision)


def test_original_llava_with_its_tower_in_the_local_cache(hub: Path, tmp_path: Path) -> None:
    directory = tiny.write_original_llava(tmp_path / "llava-v1.5-7b", extra=ORIGINAL)
    shutil.move(directory / "vision_tower", tmp_path / "by path")
    with pytest.raises(ExportError, match="openai/clip-vit-large-patch14-336 is neither") as found:
        load_checkpoint(directory)
    assert found.value.hint == "hf download openai/clip-vit-large-patch14-336"
    into_cache(hub, "openai/clip-vit-large-patch14-336", tmp_path / "by path")
    shards(directory, 2)
    assert checkpoint_layout(directory) == "original-llava"
    model, _ = load_checkpoint(directory)
    assert isinstance(model.get_vision_tower(), CLIPVisionTower)
    assert model.tiling_spec().mode == "pad"
    answer = model.generate_content(PROMPT, SHORT)
    edit_json(directory / "config.json", mm_vision_tower=str(tmp_path / "by path"))
    assert load_checkpoint(directory)[0].generate_content(PROMPT, SHORT) == answer


def test_original_llava_with_a_trained_tower_among_its_weights(tmp_path: Path) -> None:
    directory = tiny.write_original_llava(tmp_path / "llava")
    other = tiny.write_original_llava(tmp_path / "other", seed=9)
    trained = load_file(other / "vision_tower" / "model.safetensors")
    inside = {f"model.vision_tower.vision_tower.{name}": tensor for name, tensor in trained.items()}
    weights = directory / "model.safetensors"
    save_file(load_file(weights) | inside, weights, metadata={"format": "pt"})
    (directory / "vision_tower" / "model.safetensors").unlink()  # its configuration alone is needed
    tower, expected = load_checkpoint(directory)[0].get_vision_tower(), load_checkpoint(other)[0].get_vision_tower()
    pixels = torch.randn(1, 3, 28, 28)
    assert torch.equal(tower(pixels), expected(pixels))
    del inside[next(iter(inside))]
    save_file(load_file(other / "model.safetensors") | inside, weights, metadata={"format": "pt"})
    with pytest.raises(ExportError, match=r"lack 'model\.vision_tower"):
        load_checkpoint(directory)


@pytest.mark.parametrize("known", [False, True])
def test_original_tokenizers_with_and_without_an_image_token(known: bool, tmp_path: Path) -> None:
    directory = tiny.write_original_llava(tmp_path / "llava")
    if known:
        tokenizer = tiny.byte_tokenizer("", (*tiny.VICUNA_SPECIALS[:3], "<image>"))
        tokenizer.save_pretrained(directory)
    model, _ = load_checkpoint(directory)
    ids, pixels = model.prepare_prompt([tiny.picture(30, 30), "a <image> in the text"])
    assert (ids == -200).sum() == 1
    assert pixels.shape[0] == 1
    assert isinstance(model.generate_content(PROMPT, SHORT), str)


def test_image_tokens_that_the_configuration_asks_for_must_be_there(tmp_path: Path) -> None:
    directory = tiny.write_original_llava(tmp_path / "marked", marked=True)
    model, _ = load_checkpoint(directory)
    ids = model.prepare_prompt(PROMPT)[0][0].tolist()
    place = ids.index(-200)
    assert model.tokenizer.convert_ids_to_tokens([ids[place - 1], ids[place + 1]]) == ["<im_start>", "<im_end>"]
    edit_json(directory / "config.json", mm_use_im_patch_token=True)
    with pytest.raises(ExportError, match="asks for <im_patch>, which the tokenizer does not have"):
        load_checkpoint(directory)


# ---- VILA and NVILA


@pytest.mark.parametrize("projector", ["mlp_downsample", "mlp2x_gelu"])
def test_vila15_on_llama(projector: str, tmp_path: Path) -> None:
    fields = VILA | {"image_aspect_ratio": "resize", "s2": False, "s2_scales": "336,672,1008"}
    directory = tiny.write_nvila(
        tmp_path / "VILA1.5-3b", scales=None, llama=True, projector=projector, aspect="resize", extra=fields
    )
    edit_json(directory / "llm" / "config.json", tokenizer_model_max_length=4096, tokenizer_padding_side="right")
    edit_json(directory / "llm" / "generation_config.json", temperature=0.9, top_p=0.6, max_length=4096)
    shards(directory / "llm", 2)
    model, family = load_checkpoint(directory)
    assert (family, type(model)) == ("nvila", VilaLlama)
    assert type(model.get_vision_tower()) is SiglipVisionTower
    assert model.tokenizer.chat_template.count("USER: ") == 1
    assert model.tiling_spec().mode == "resize"
    assert isinstance(model.generate_content(PROMPT, SHORT), str)
    assert model.quantization == "rtn"
    model.save_pretrained(tmp_path / "saved")
    again, _ = load_checkpoint(tmp_path / "saved")
    assert isinstance(again, VilaLlama)
    ids = torch.tensor([[3, 4, 5]])
    assert torch.equal(again.llm(ids).logits, model.llm(ids).logits)


@pytest.mark.parametrize(
    ("name", "options", "fields"),
    [
        (
            "NVILA-8B",
            {"scales": (28, 56, 84)},
            {"image_aspect_ratio": "dynamic_s2", "dynamic_s2": True, "s2": False, "s2_resize_output_to_scale_idx": -1},
        ),
        (
            "NVILA-Lite-2B",
            {"scales": None, "projector": "mlp_downsample_3x3_fix"},
            {"image_aspect_ratio": "dynamic", "dynamic_s2": None, "s2": None, "s2_scales": None},
        ),
        (
            "NVILA-8B-Video",
            {"scales": None, "projector": "mlp_downsample_2x2_fix"},
            {
                "image_aspect_ratio": "resize",
                "num_video_frames": 256,
                "video_encoder": '{"_target_": "llava.model.encoders.TSPVideoEncoder", "pool_sizes": [[8, 1, 1]]}',
            },
        ),
    ],
)
def test_nvila_top_configurations(name: str, options: Any, fields: dict[str, Any], tmp_path: Path) -> None:
    more = {"chat_template": None, "min_tiles": 1, "max_tiles": 12, "video_max_tiles": 1, "ps3": False}
    extra = {**VILA, **ENCODERS, **more, **fields}
    directory = tiny.write_nvila(tmp_path / name, extra=extra, **options)
    if options["scales"]:
        edit_json(directory / "config.json", s2_max_split_size=28)
    shards(directory / "llm", 4)
    model, _ = load_checkpoint(directory, dtype=None)
    assert isinstance(model, NVILAQwen2)
    assert model.dtype == torch.bfloat16
    assert {parameter.dtype for parameter in model.llm.parameters()} == {torch.bfloat16}
    assert isinstance(model.get_vision_tower(), SiglipVisionTowerDynamicS2) == (name == "NVILA-8B")
    assert model.tiling_spec().mode == extra["image_aspect_ratio"]
    assert model.config.resume_path == str(directory)  # not the folder of its training
    model, _ = load_checkpoint(directory)
    assert isinstance(model.generate_content(PROMPT, SHORT), str)


def test_media_tokens_beyond_the_table_need_no_rows_of_their_own(tmp_path: Path) -> None:
    directory = tiny.write_nvila(tmp_path / "vila", scales=None, llama=True, extra=VILA | {"model_dtype": "float32"})
    rows = load_file(directory / "llm" / "model.safetensors")["model.embed_tokens.weight"].shape[0]
    model, _ = load_checkpoint(directory)
    assert max(model.tokenizer.media_token_ids.values()) >= rows
    assert model.llm.lm_head.out_features == model.llm.get_input_embeddings().num_embeddings == rows
    assert isinstance(model.generate_content(PROMPT, SHORT), str)
    with pytest.raises(PromptError, match=f"beyond the decoder's {rows} embeddings"):
        model.embed_tokens(torch.tensor([rows]))


def test_a_class_for_one_decoder_names_the_class_for_the_other(checkpoints: Any, tmp_path: Path) -> None:
    directory = tiny.write_nvila(tmp_path / "vila", scales=None, llama=True)
    with pytest.raises(ExportError, match="a decoder of type 'llama'") as found:
        NVILAQwen2.load_pretrained(directory)
    assert "VilaLlama" in found.value.hint
    with pytest.raises(ExportError, match="a decoder of type 'qwen2'"):
        VilaLlama.load_pretrained(checkpoints("nvila"))
