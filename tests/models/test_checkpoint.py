"""Checkpoints in every layout load, survive a round trip, and their faults are named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig

from models.checkpoint import checkpoint_layout, load_checkpoint, rename_hf_llava
from models.nvila import LlavaConfig, NVILAQwen2, get_model_config
from models.vision_tower import CLIPVisionTower
from models.weights import model_directory, read_tensors, weight_files
from runtime.errors import ExportError
from tests.models import tiny


def copy(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target


def logits(model: Any) -> torch.Tensor:
    ids = torch.tensor([[3, 4, 5]])
    with torch.no_grad():
        found: torch.Tensor = model.llm(ids).logits if isinstance(model, NVILAQwen2) else model(ids).logits
    return found


# ---- LLaVA layouts


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_stored_dtypes_load_as_they_are_or_converted(dtype: torch.dtype, tmp_path: Path) -> None:
    directory = tiny.write_llava(tmp_path / "llava", dtype=dtype)
    kept, family = load_checkpoint(directory, dtype=None)
    assert family == "llava"
    assert {parameter.dtype for parameter in kept.parameters()} == {dtype}
    converted, _ = load_checkpoint(directory)
    assert {parameter.dtype for parameter in converted.parameters()} == {torch.float32}
    assert torch.equal(kept.lm_head.weight.float(), converted.lm_head.weight)


@pytest.mark.parametrize("style", ["transformers 5", "before 4.52"])
def test_key_names_of_older_and_newer_transformers_give_the_same_model(
    style: str, checkpoints: Any, tmp_path: Path
) -> None:
    source = checkpoints("llava")
    directory = copy(source, tmp_path / "renamed")
    names = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        plain = name.removeprefix("model.")
        if "vision_tower." in plain:
            inner = plain.removeprefix("vision_tower.").removeprefix("vision_model.")
            new = f"vision_tower.vision_model.{inner}" if style != "transformers 5" else f"model.vision_tower.{inner}"
        elif "lm_head" in plain:
            new = "lm_head.weight" if style == "transformers 5" else "language_model.lm_head.weight"
        elif "multi_modal" in plain:
            new = plain if style != "transformers 5" else f"model.{plain}"
        else:
            inner = plain.removeprefix("language_model.").removeprefix("model.")
            new = f"language_model.model.{inner}" if style != "transformers 5" else f"model.language_model.{inner}"
        names[new] = tensor
    save_file(names, directory / "model.safetensors")
    first, second = load_checkpoint(source)[0].state_dict(), load_checkpoint(directory)[0].state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_sharded_weights_load_and_a_missing_shard_is_named(checkpoints: Any, tmp_path: Path) -> None:
    directory = copy(checkpoints("llava"), tmp_path / "sharded")
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    halves = [dict(list(tensors.items())[::2]), dict(list(tensors.items())[1::2])]
    for index, half in enumerate(halves):
        save_file(half, directory / f"model-{index}.safetensors")
    weight_map = {name: f"model-{index}.safetensors" for index, half in enumerate(halves) for name in half}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert torch.equal(logits(load_checkpoint(directory)[0]), logits(load_checkpoint(checkpoints("llava"))[0]))
    (directory / "model-1.safetensors").unlink()
    with pytest.raises(ExportError, match=r"model-1\.safetensors is missing"):
        load_checkpoint(directory)


@pytest.mark.parametrize("tower_inside", [True, False])
def test_original_llava_layout_equals_the_transformers_one(
    tower_inside: bool, checkpoints: Any, tmp_path: Path
) -> None:
    model, _ = load_checkpoint(checkpoints("llava"))
    source = checkpoints("llava")
    directory = tmp_path / "original"
    tower = model.get_vision_tower()
    tower.vision_tower.save_pretrained(tmp_path / "clip")
    tower.image_processor.save_pretrained(tmp_path / "clip")
    model.tokenizer.save_pretrained(directory)
    text = json.loads((source / "config.json").read_text())["text_config"]
    fields = text | {"model_type": "llava", "architectures": ["LlavaLlamaForCausalLM"], "mm_hidden_size": 16}
    fields |= {
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": str(tmp_path / "clip"),
    }
    (directory / "config.json").write_text(json.dumps(fields))
    state = {k: v for k, v in model.state_dict().items() if tower_inside or "vision_tower" not in k}
    save_file({k: v.clone() for k, v in state.items()}, directory / "model.safetensors")
    assert checkpoint_layout(directory) == "original-llava"
    again, family = load_checkpoint(directory)
    assert family == "llava"
    assert isinstance(again.get_vision_tower(), CLIPVisionTower)
    ids, pixels = model.prepare_prompt([tiny.picture(30, 30), "q"])
    assert torch.equal(again(ids, images=pixels).logits, model(ids, images=pixels).logits)


# ---- NVILA


def test_behaviour_25_resume_path_decides_between_folders_and_names(checkpoints: Any, tmp_path: Path) -> None:
    directory = checkpoints("nvila")
    config = LlavaConfig.from_directory(directory)
    assert get_model_config(config) == [str(directory / part) for part in ("llm", "vision_tower", "mm_projector")]
    config.mm_projector_cfg = "linear"
    with pytest.raises(ExportError, match="linear is missing"):
        get_model_config(config)
    config.resume_path = None
    assert get_model_config(config)[2] == "linear"
    config.mm_projector_cfg = None
    with pytest.raises(ValueError, match="not found in the config"):
        get_model_config(config)


def test_behaviour_34_load_from_path_and_configuration_and_nothing_else(checkpoints: Any) -> None:
    directory = checkpoints("nvila")
    by_path = NVILAQwen2.load_pretrained(str(directory), config="ignored")
    by_config = NVILAQwen2.load_pretrained(LlavaConfig.from_directory(directory))
    assert torch.equal(logits(by_path), logits(by_config))
    assert NVILAQwen2.load_pretrained(directory, dtype=torch.float16).dtype == torch.float16
    bare = NVILAQwen2.load_pretrained(directory, llm=False)
    assert bare.get_llm() is None
    with pytest.raises(NotImplementedError, match="dict"):
        NVILAQwen2.load_pretrained({})  # type: ignore[arg-type]


# ---- faults


def damaged(source: Path, target: Path, fault: str) -> Path:
    directory = copy(source, target)
    weights = directory / (
        "model.safetensors" if (directory / "model.safetensors").exists() else "llm/model.safetensors"
    )
    tensors = load_file(weights)
    first = next(name for name in tensors if "q_proj" in name)
    if fault == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif fault == "header":
        weights.write_bytes(b"\xff" * 64)
    elif fault == "none":
        weights.unlink()
    elif fault == "pickle":
        weights.unlink()
        (weights.parent / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    elif fault == "missing":
        save_file({k: v for k, v in tensors.items() if k != first}, weights)
    elif fault == "unknown":
        save_file(tensors | {"surprise": torch.zeros(1)}, weights)
    elif fault == "shape":
        save_file(tensors | {first: torch.zeros(3, 3)}, weights)
    return directory


@pytest.mark.parametrize("kind", ["llava", "nvila"])
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("truncated", "cannot be read as safetensors"),
        ("header", "cannot be read as safetensors"),
        ("none", "holds no safetensors file"),
        ("pickle", r"pytorch_model\.bin, a pickle.*export\.convert"),
        ("missing", r"lack '.*q_proj.*'"),
        ("unknown", "'surprise'"),
        ("shape", r"has shape \(3, 3\)"),
    ],
)
def test_damaged_weights_are_named(kind: str, fault: str, said: str, checkpoints: Any, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=said) as found:
        load_checkpoint(damaged(checkpoints(kind), tmp_path / "broken", fault))
    assert found.value.hint or fault in ("unknown", "shape")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"architectures": ["PaliGemma"], "model_type": "paligemma"}, "unknown architecture 'PaliGemma'"),
        ({"projector_hidden_act": "relu"}, "'relu'"),
        ({"vision_feature_select_strategy": "half"}, "got half"),
    ],
)
def test_unsupported_configurations_are_named(
    changes: dict[str, Any], said: str, checkpoints: Any, tmp_path: Path
) -> None:
    directory = copy(checkpoints("llava"), tmp_path / "other")
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(ExportError, match=said):
        load_checkpoint(directory)


def test_wrong_projector_type_and_missing_files_are_named(checkpoints: Any, tmp_path: Path) -> None:
    directory = copy(checkpoints("nvila"), tmp_path / "n")
    (directory / "mm_projector" / "config.json").write_text('{"mm_projector_type": "mlp_upsample"}')
    with pytest.raises(ExportError, match="Unknown projector type: mlp_upsample"):
        load_checkpoint(directory)
    with pytest.raises(ExportError, match="not a directory"):
        load_checkpoint(tmp_path / "nowhere")
    with pytest.raises(ExportError, match=r"config\.json is missing"):
        load_checkpoint(tmp_path)
    llava = copy(checkpoints("llava"), tmp_path / "l")
    (llava / "preprocessor_config.json").unlink()
    with pytest.raises(ExportError, match=r"preprocessor_config\.json is missing"):
        load_checkpoint(llava)
    (llava / "config.json").write_text("{")
    with pytest.raises(ExportError, match="cannot be read as JSON"):
        load_checkpoint(llava)


def test_nothing_is_downloaded_and_paths_stay_inside(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="local Hugging Face cache"):
        model_directory("somebody/some-model")
    with pytest.raises(ExportError, match="cannot be read"):
        read_tensors(tmp_path / "none.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../other.safetensors"}}')
    save_file({"a": torch.zeros(1)}, tmp_path.parent / "other.safetensors")
    with pytest.raises(ExportError, match=r"other\.safetensors"):
        weight_files(tmp_path)


def test_names_that_no_model_needs_are_left_out() -> None:
    assert rename_hf_llava("language_model.model.layers.0.self_attn.rotary_emb.inv_freq") is not None
    assert rename_hf_llava("model.layers.0.self_attn.rotary_emb.inv_freq") is None
    assert rename_hf_llava("vision_tower.vision_model.embeddings.position_ids") is None


DEMOS = Path("models/demo")


@pytest.mark.parametrize(("name", "family"), [("demo-llava", "llava"), ("demo-nvila", "nvila")])
def test_the_demo_checkpoints_load_and_answer(name: str, family: str) -> None:
    directory = Path(__file__).parents[2] / DEMOS / name
    if not (directory / "config.json").is_file():
        pytest.skip(f"{directory} is not there: it comes with scripts/train_demo.py")
    model, found = load_checkpoint(directory)
    assert found == family
    short = GenerationConfig(max_new_tokens=3)
    assert isinstance(model.generate_content([tiny.picture(96, 72), "describe"], short), str)
