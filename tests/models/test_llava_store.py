"""LLaVA saved and loaded again: the same bits, and one directory that needs no other."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from models import directories, llava_store
from models.checkpoint import checkpoint_layout, load_checkpoint
from models.int4 import Int4Linear, quantize_nearest
from models.vision_tower import CLIPVisionTower
from runtime.errors import OutputError
from tests.models import tiny
from tests.models.tiny import picture

ORIGINAL: list[dict[str, Any]] = [{}, {"projector": "linearclip"}, {"projector": "identity"}, {"select_layer": [-2, 0]}]


def answers_alike(first: Any, second: Any) -> None:
    ids, pixels = first.prepare_prompt([picture(40, 30), "what is it?"])
    again, others = second.prepare_prompt([picture(40, 30), "what is it?"])
    assert torch.equal(ids, again)
    assert torch.equal(pixels, others)
    with torch.no_grad():
        assert torch.equal(first(ids, images=pixels).logits, second(ids, images=pixels).logits)


@pytest.mark.parametrize("options", ORIGINAL, ids=str)
def test_save_and_load_give_the_same_logits_without_the_first_directory(options: Any, tmp_path: Path) -> None:
    source = tiny.write_original_llava(tmp_path / "first", **options)
    model, _ = load_checkpoint(source)
    model.save_pretrained(tmp_path / "out")
    shutil.move(source, tmp_path / "gone")
    again, family = load_checkpoint(tmp_path / "out")
    assert family == "llava"
    answers_alike(model, again)
    first, second = model.state_dict(), again.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert {path.name for path in tmp_path.iterdir()} == {"gone", "out"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_checkpoint_of_transformers_is_saved_in_llavas_own_layout(dtype: torch.dtype, tmp_path: Path) -> None:
    model, _ = load_checkpoint(tiny.write_llava(tmp_path / "first", dtype=dtype, tied=True), dtype=None)
    model.save_pretrained(tmp_path / "out")
    assert checkpoint_layout(tmp_path / "out") == "original-llava"
    again, _ = load_checkpoint(tmp_path / "out", dtype=None)
    assert {parameter.dtype for parameter in again.parameters()} == {dtype}
    assert isinstance(again.get_vision_tower(), CLIPVisionTower)
    ids, pixels = model.prepare_prompt([picture(40, 30), "what is it?"])
    with torch.no_grad():
        first = model(ids, images=pixels.to(dtype)).logits
        assert torch.equal(first, again(ids, images=pixels.to(dtype)).logits)
    assert not hasattr(model.config, "mm_vision_tower") or model.config.mm_vision_tower is None


def test_a_given_state_dict_is_saved_and_not_the_live_weights(tmp_path: Path) -> None:
    model, _ = load_checkpoint(tiny.write_original_llava(tmp_path / "first"))
    state = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    model.save_pretrained(tmp_path / "out", state_dict=state)
    assert not any("vision_tower" in name for name in load_file(tmp_path / "out" / "model.safetensors"))  # stored once
    again = load_checkpoint(tmp_path / "out")[0].state_dict()
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], state[name]) for name in state)


def test_a_tower_that_fsdp_hides_is_saved_too(tmp_path: Path) -> None:
    model, _ = load_checkpoint(tiny.write_original_llava(tmp_path / "first"))
    model.model._place_tower(model.get_vision_tower(), hidden=True)
    state = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    model.save_pretrained(tmp_path / "out", state_dict=state)
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert stored.keys() == state.keys()
    assert all(torch.equal(stored[name], state[name]) for name in state)
    again, _ = load_checkpoint(tmp_path / "out")
    tower = model.get_vision_tower().state_dict()
    assert all(torch.equal(tensor, tower[name]) for name, tensor in again.get_vision_tower().state_dict().items())


def test_an_interrupted_save_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: Any) -> None:
    model, _ = load_checkpoint(tiny.write_original_llava(tmp_path / "out"))
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}

    def fails(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    for module, broken in ((llava_store, "_write_tower"), (directories, "place_directory")):
        with monkeypatch.context() as patch:
            patch.setattr(module, broken, fails)
            with pytest.raises(OutputError, match="No space left"):
                model.save_pretrained(tmp_path / "out")
        assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before
        assert {path.name for path in tmp_path.iterdir()} == {"out"}
    tower = model.config.mm_vision_tower
    model.save_pretrained(tmp_path / "out")
    assert model.config.mm_vision_tower == tower
    assert {path.name for path in tmp_path.iterdir()} == {"out"}


def test_what_the_layout_cannot_hold_is_refused(tmp_path: Path) -> None:
    siglip, _ = load_checkpoint(tiny.write_llava(tmp_path / "s", siglip=True, select_strategy="full"))
    with pytest.raises(OutputError, match="SiglipVisionTower has no place"):
        siglip.save_pretrained(tmp_path / "out")
    model, _ = load_checkpoint(tiny.write_llava(tmp_path / "c"))
    model.lm_head = Int4Linear(quantize_nearest(model.lm_head.weight, 32), None)
    with pytest.raises(OutputError, match="integer weights"):
        model.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_of_a_batch_answer_as_they_do_alone_whatever_the_padding(side: str, loaded: Any, monkeypatch: Any) -> None:
    model = loaded("llava")
    monkeypatch.setattr(model.config, "tokenizer_padding_side", side, raising=False)
    parts = [model.prepare_prompt([picture(40, 30, i), "why on earth"[: 4 + 5 * i]]) for i in range(2)]
    settings = {"max_new_tokens": 6, "eos_token_id": -1, "pad_token_id": 0, "do_sample": False}
    alone = [model.generate(ids, images=pixels, **settings)[0].tolist() for ids, pixels in parts]
    longest = max(ids.shape[1] for ids, _ in parts)
    ids, mask = torch.zeros(2, longest, dtype=torch.long), torch.zeros(2, longest, dtype=torch.long)
    for row, (own, _) in enumerate(parts):
        place = slice(0, own.shape[1]) if side == "right" else slice(longest - own.shape[1], longest)
        ids[row, place], mask[row, place] = own[0], 1
    pixels = torch.cat([own for _, own in parts])
    together = model.generate(ids, images=pixels, attention_mask=mask, **settings)
    assert together.tolist() == alone
    assert alone[0] != alone[1]
