"""Saved models: the same ones when they are loaded again, whatever their weights, and never half of one."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, SiglipVisionModel
from transformers.quantizers.auto import AutoQuantizationConfig

from models import nvila_store
from models.checkpoint import load_checkpoint
from models.int4 import Int4Linear
from models.nvila import NVILAQwen2
from models.packed import unpack_tensors
from models.packed_store import packed_parts
from runtime.bundle import write
from runtime.errors import OutputError
from tests.models.quantized import CONFIGS, edit_json, quantized_copy


def logits(llm: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = llm(torch.tensor([[3, 4, 5]])).logits
    return found


def contents(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


@pytest.mark.parametrize("options", [{}, {"tied": True}, {"scales": None, "clip": True}], ids=str)
def test_behaviour_25_save_and_load_give_the_same_logits_and_features(
    options: Any, checkpoints: Any, tmp_path: Path
) -> None:
    model, family = load_checkpoint(checkpoints("nvila", **options))
    assert family == "nvila"
    model.save_pretrained(tmp_path / "out")
    again = NVILAQwen2.load_pretrained(tmp_path / "out")
    assert torch.equal(logits(again.llm), logits(model.llm))
    stack = torch.randn(2, 3, 28, 28)
    assert torch.equal(again.encode_images(stack), model.encode_images(stack))
    assert again.state_dict().keys() == model.state_dict().keys()
    assert again.tiling_spec() == model.tiling_spec()
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["NVILAQwen2"]
    assert config["_name_or_path"] == str(tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"out"}


def test_behaviour_35_a_given_state_dict_is_saved_and_not_the_live_weights(checkpoints: Any, tmp_path: Path) -> None:
    model, _ = load_checkpoint(checkpoints("nvila"))
    state = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    model.save_pretrained(tmp_path / "out", state_dict=state)
    again = NVILAQwen2.load_pretrained(tmp_path / "out")
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, state[name])


def test_behaviour_35_transformers_opens_the_parts_by_themselves(checkpoints: Any, tmp_path: Path) -> None:
    model, _ = load_checkpoint(checkpoints("nvila"))
    model.save_pretrained(tmp_path / "out")
    llm = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "llm", dtype=torch.float32)
    assert torch.equal(logits(llm), logits(model.llm))
    tower = SiglipVisionModel.from_pretrained(tmp_path / "out" / "vision_tower", dtype=torch.float32)
    for name, tensor in model.vision_tower.vision_tower.state_dict().items():
        assert torch.equal(tensor, tower.state_dict()[name])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_behaviour_25_saving_twice_gives_the_same_bytes(dtype: torch.dtype, checkpoints: Any, tmp_path: Path) -> None:
    model, _ = load_checkpoint(checkpoints("nvila", tied=True), dtype=dtype)
    model.save_pretrained(tmp_path / "out")
    first = contents(tmp_path / "out")
    again, _ = load_checkpoint(tmp_path / "out", dtype=None)
    assert again.dtype == dtype
    again.save_pretrained(tmp_path / "out")
    assert contents(tmp_path / "out") == first


def test_behaviour_25_what_the_decoder_generates_with_survives(checkpoints: Any, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(checkpoints("nvila"), source)
    published = {"temperature": 0.7, "do_sample": False, "repetition_penalty": 1.05}
    edit_json(source / "llm" / "generation_config.json", **published)
    model, _ = load_checkpoint(source)
    model.save_pretrained(tmp_path / "out")
    again, _ = load_checkpoint(tmp_path / "out")
    for found in (model, again):
        assert published.items() <= found.default_generation_config.to_dict().items()


# ---- integers


@pytest.mark.parametrize("layout", CONFIGS)
def test_behaviour_35_integers_are_saved_as_they_are_from_every_layout(
    layout: str, checkpoints: Any, tmp_path: Path
) -> None:
    packed, _ = quantized_copy(checkpoints("nvila"), tmp_path, layout, head_bits=8)
    model, _ = load_checkpoint(packed)
    model.save_pretrained(tmp_path / "out")
    again, _ = load_checkpoint(tmp_path / "out")
    integers = {name: m.integers() for name, m in model.llm.named_modules() if isinstance(m, Int4Linear)}
    assert len(integers) == 14
    for name, weight in integers.items():
        assert again.llm.get_submodule(name).integers().equals(weight)
    assert torch.equal(logits(again.decoder(False)), logits(model.decoder(False)))
    assert torch.equal(logits(again.decoder(True)), logits(model.decoder(True)))
    assert (again.quantization, again.head_bits) == ("awq", 8)
    again.save_pretrained(tmp_path / "twice")
    weights = "llm/model.safetensors"
    assert (tmp_path / "twice" / weights).read_bytes() == (tmp_path / "out" / weights).read_bytes()
    if layout == "autoawq-gemm":
        ours, theirs = load_file(tmp_path / "out" / weights), load_file(packed / weights)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_behaviour_35_transformers_takes_the_quantisation_settings(checkpoints: Any, tmp_path: Path) -> None:
    packed, _ = quantized_copy(checkpoints("nvila"), tmp_path, "compressed-tensors")
    load_checkpoint(packed)[0].save_pretrained(tmp_path / "out")
    settings = AutoConfig.from_pretrained(tmp_path / "out" / "llm").quantization_config
    parsed = AutoQuantizationConfig.from_dict(settings)
    assert parsed.quant_method == "awq"
    assert (parsed.bits, parsed.group_size, parsed.zero_point) == (4, 32, True)
    assert parsed.modules_to_not_convert == ["lm_head"]
    top = json.loads((tmp_path / "out" / "config.json").read_text())
    assert top["llm_cfg"]["quantization_config"] == settings


@pytest.mark.parametrize(("tied", "head_bits"), [(False, 4), (True, 4), (False, 8)])
def test_behaviour_35_a_model_without_its_full_weights_is_saved_too(
    tied: bool, head_bits: int, checkpoints: Any, tmp_path: Path
) -> None:
    model, _ = load_checkpoint(checkpoints("nvila", tied=tied, hidden=96))
    model.head_bits = head_bits
    before = logits(model.decoder(True))
    model.release_full_weights()
    sizes = {module.group_size for module in model.llm.modules() if isinstance(module, Int4Linear)}
    assert sizes == {32, 64}  # one size on disk
    model.save_pretrained(tmp_path / "out")
    again, _ = load_checkpoint(tmp_path / "out")
    assert again.quantization == "rtn"
    assert torch.equal(logits(again.decoder(True)), before)
    assert again.decoder(True).lm_head is again.llm.lm_head or tied
    stored = load_file(tmp_path / "out" / "llm" / "model.safetensors")
    assert ("lm_head.weight" in stored) is not tied


def test_groups_that_do_not_divide_each_other_are_cut_to_what_divides_all(checkpoints: Any, monkeypatch: Any) -> None:
    model, _ = load_checkpoint(checkpoints("nvila"))
    twin = model.decoder(True)
    wide = Int4Linear.nearest(torch.nn.Linear(96, 16), 96)
    twin.model.layers[0].mlp.up_proj = wide
    monkeypatch.setattr(model, "llm", twin)
    tensors, settings, _ = packed_parts(model, twin.state_dict())
    assert settings is not None
    assert settings["group_size"] == 32  # of 64, 96 and 128
    parts = {name: tensors[f"model.layers.0.mlp.up_proj.{name}"] for name in ("qweight", "qzeros", "scales")}
    weight = unpack_tensors(parts, "autoawq-gemm", (16, 96), 32)
    assert (weight.dequantize() == wide.weight.numpy()).all()


def test_what_the_form_cannot_hold_is_named(loaded: Any, monkeypatch: Any) -> None:
    model = loaded("nvila", seed=9)
    twin = model.decoder(True)
    twin.model.layers[1].mlp.up_proj = Int4Linear.nearest(torch.nn.Linear(64, 12), 32)
    monkeypatch.setattr(model, "llm", twin)
    with pytest.raises(OutputError, match=r"layers\.1\.mlp\.up_proj cannot be stored as autoawq-gemm: N is 12"):
        packed_parts(model, twin.state_dict())


def test_behaviour_35_a_given_state_dict_decides_between_integers_and_floats(checkpoints: Any, tmp_path: Path) -> None:
    packed, floats = quantized_copy(checkpoints("nvila"), tmp_path, "autoawq-gemm")
    model, full = load_checkpoint(packed)[0], load_checkpoint(floats)[0]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    name = "llm.model.layers.0.mlp.up_proj"
    state[f"{name}.q"] ^= 255
    model.save_pretrained(tmp_path / "ints", state_dict=state)
    q = load_checkpoint(tmp_path / "ints")[0].llm.model.layers[0].mlp.up_proj.integers().q
    assert (q == 15 - model.llm.model.layers[0].mlp.up_proj.integers().q).all()
    model.save_pretrained(tmp_path / "full", state_dict=full.state_dict())
    again, _ = load_checkpoint(tmp_path / "full")
    assert again.quantization == "none"
    assert torch.equal(logits(again.llm), logits(full.llm))


# ---- interruptions


def test_behaviour_35_a_disk_that_is_full_leaves_the_old_checkpoint(
    checkpoints: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    model, _ = load_checkpoint(checkpoints("nvila"))
    model.save_pretrained(tmp_path / "out")
    before = contents(tmp_path / "out")

    def fails(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    for module, broken in ((nvila_store, "save_weights"), (nvila_store, "_save_configs"), (write, "_swap_in")):
        with monkeypatch.context() as patch:
            patch.setattr(module, broken, fails)
            with pytest.raises(OutputError, match="No space left"):
                model.save_pretrained(tmp_path / "out")
        assert contents(tmp_path / "out") == before
        assert {path.name for path in tmp_path.iterdir()} == {"out"}
    model.save_pretrained(tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"out"}


def killed_in(work: Callable[[], None], module: Any, step: str, calls: int, *, after: bool) -> None:
    """Run ``work`` in a fork that is killed at the n-th call of a function, before or after it."""
    child = os.fork()
    if child == 0:
        original, seen = getattr(module, step), []

        def dies(*args: Any, **options: Any) -> Any:
            seen.append(step)
            result = original(*args, **options) if after or len(seen) < calls else None
            if len(seen) == calls:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        setattr(module, step, dies)
        try:
            work()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGKILL


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
@pytest.mark.parametrize(
    ("module", "step", "calls", "after"),
    [
        (nvila_store, "save_file", 1, False),
        (nvila_store, "save_file", 1, True),
        (nvila_store, "save_file", 3, True),
        (nvila_store, "_write_json", 2, True),
        (nvila_store, "_save_configs", 1, True),
        (write, "_flush_tree", 1, True),
        (write, "_swap_in", 1, False),
        (write, "_swap_in", 1, True),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_behaviour_35_a_save_killed_anywhere_leaves_one_whole_checkpoint(
    module: Any, step: str, calls: int, after: bool, loaded: Any, tmp_path: Path
) -> None:
    model = loaded("nvila", seed=7)
    model.save_pretrained(tmp_path / "out")
    before = contents(tmp_path / "out")
    state = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    killed_in(lambda: model.save_pretrained(tmp_path / "out", state_dict=state), module, step, calls, after=after)
    if (step, after) == ("_swap_in", True):  # the moment at which it counts
        again, _ = load_checkpoint(tmp_path / "out")
        assert all(torch.equal(tensor, state[name]) for name, tensor in again.state_dict().items())
    else:
        assert contents(tmp_path / "out") == before
