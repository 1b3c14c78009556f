"""Pickled weights become safetensors; a pickle that holds code is refused and does not run it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from export.checkpoint import read_checkpoint
from export.convert import convert, main
from models import torch_child, torch_files
from models.checkpoint import load_checkpoint
from models.projector import read_range
from models.weights import weight_files
from runtime.errors import ExportError, OutputError
from tests.export.small_checkpoints import write_llava
from tests.models.quantized import quantized_copy
from tests.models.tiny import write_nvila

pytestmark = pytest.mark.torch


def pickled(root: Path, shards: int) -> dict[str, Any]:
    """Turns a checkpoint's weights into pickles; returns them."""
    weights = load_file(root / "model.safetensors")
    (root / "model.safetensors").unlink()
    names = sorted(weights)
    for number in range(shards):
        part = {name: weights[name] for name in names[number::shards]}
        torch.save(part, root / f"pytorch_model-{number + 1:05d}-of-{shards:05d}.bin")
    (root / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {}}))
    return weights


def test_converted_shards_can_be_exported_and_the_command_tells_what_it_did(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_llava(tmp_path / "l")
    weights = pickled(root, 2)
    with pytest.raises(ExportError):
        read_checkpoint(root)
    assert main([str(root), "--out", str(tmp_path / "converted"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["files"], told["tensors"], told["left_out"]) == (2, len(weights), {})
    checkpoint = read_checkpoint(tmp_path / "converted")
    found: dict[str, Any] = {}
    for path in checkpoint.files:
        found |= load_file(path) if path.suffix == ".safetensors" else {}
    assert set(found) == set(weights)
    assert all(torch.equal(found[name], weights[name]) for name in weights)
    assert not list((tmp_path / "converted").glob("*.bin*"))


class Evil:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.trace}",)


def test_code_in_a_pickle_is_refused_and_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c").mkdir()
    torch.save({"weight": Evil(tmp_path / "ran")}, tmp_path / "c" / "pytorch_model.bin")
    command = [str(tmp_path / "c"), "--out"]
    assert main([*command, str(tmp_path / "o"), "--json"]) == 4
    assert "more than tensors" in json.loads(capsys.readouterr().out)["error"]
    assert {path.name for path in tmp_path.iterdir()} == {"c"}, "neither the trace of code nor half a folder"
    assert main([*command, str(tmp_path / "c")]) == 8
    assert capsys.readouterr().err.endswith("c: exists\nhint: name a new folder\n")


@pytest.fixture
def without_child(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are read in this process: a child takes a second, and tests/models/test_torch_files.py tests it."""

    def run(source: Path, target: Path, limits: Any) -> None:
        torch_child.convert(source, target, limits.result_bytes)

    monkeypatch.setattr(torch_files, "_run_child", run)


def test_awq_weights_keep_their_place_and_side_files_their_names(tmp_path: Path, without_child: None) -> None:
    root = tmp_path / "c"
    for folder in ("llm", "vision_tower"):
        (root / folder).mkdir(parents=True)
    (root / "config.json").write_text("{}")
    packed = {"model.layers.0.mlp.up_proj.qweight": torch.arange(8, dtype=torch.int16).reshape(2, 4)}
    packed |= {"model.layers.0.mlp.up_proj.scales": torch.rand(2, 2).half()}
    torch.save(packed, root / "llm" / "nvila-w4-g128-awq-v2.pt")
    torch.save({"vision_tower.layers.0.fc1": torch.rand(5)}, root / "llm" / "nvila-smooth-scale.pt")
    save_file({"w": torch.rand(3).bfloat16()}, root / "vision_tower" / "model.safetensors")
    torch.save({"w": torch.rand(3)}, root / "vision_tower" / "pytorch_model.bin")
    torch.save({"model.mm_projector.0.bias": torch.rand(3)}, root / "mm_projector.bin")
    torch.save((torch.zeros(4), torch.ones(4)), root / "emb_min_max.pt")
    torch.save({"step": 3}, root / "optimizer.pt")
    result = convert(root, tmp_path / "o")
    written = {str(path.relative_to(tmp_path / "o")) for path in (tmp_path / "o").rglob("*") if path.is_file()}
    assert written == {
        "config.json", "emb_min_max.safetensors", "mm_projector.safetensors", "llm/model.safetensors",
        "llm/model.safetensors.index.json", "llm/nvila-smooth-scale.safetensors", "vision_tower/model.safetensors",
    }  # fmt: skip
    found = load_file(tmp_path / "o" / "llm" / "model.safetensors")
    assert all(torch.equal(found[name], packed[name]) and found[name].dtype == packed[name].dtype for name in packed)
    assert weight_files(tmp_path / "o" / "llm") == [tmp_path / "o" / "llm" / "model.safetensors"]
    assert [t[0].item() for t in read_range(tmp_path / "o" / "emb_min_max.safetensors")] == [0, 1]
    assert set(result.left_out) == {"optimizer.pt", "vision_tower/pytorch_model.bin"}
    assert (result.files, result.tensors) == (4, 6)


def test_what_cannot_be_one_model_is_refused(tmp_path: Path, without_child: None) -> None:
    root = tmp_path / "c"
    root.mkdir()
    torch.save({"a": torch.zeros(1)}, root / "pytorch_model-00002-of-00002.bin")
    with pytest.raises(ExportError, match="shard 1 of 00002 is missing"):
        convert(root, tmp_path / "o")
    torch.save({"a": torch.zeros(1)}, root / "pytorch_model-00001-of-00002.bin")
    with pytest.raises(ExportError, match=r"'a' is in model-00001.*and in model-00002"):
        convert(root, tmp_path / "o")
    torch.save({"a": torch.zeros(1)}, root / "pytorch_model.bin")
    with pytest.raises(ExportError, match="several files of weights"):
        convert(root, tmp_path / "o")
    assert {path.name for path in tmp_path.iterdir()} == {"c"}


def test_empty_and_existing_folders_and_other_contents_are_refused(tmp_path: Path, without_child: None) -> None:
    (tmp_path / "c").mkdir()
    save_file({"a": torch.zeros(1)}, tmp_path / "c" / "other.safetensors")
    with pytest.raises(ExportError, match="need no conversion|no "):
        convert(tmp_path / "c", tmp_path / "o")
    (tmp_path / "c" / "other.safetensors").unlink()
    torch.save([1, 2], tmp_path / "c" / "model.bin")
    with pytest.raises(OutputError, match="exists"):
        convert(tmp_path / "c", tmp_path / "c")
    with pytest.raises(ExportError, match="no table of tensors but other list"):
        convert(tmp_path / "c", tmp_path / "p")
    (tmp_path / "c" / "model.bin").rename(tmp_path / "c" / "emb_min_max.pt")
    with pytest.raises(ExportError, match="is no range"):
        convert(tmp_path / "c", tmp_path / "p")


def test_a_full_disk_is_an_output_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without_child: None
) -> None:
    (tmp_path / "c").mkdir()
    torch.save({"a": torch.zeros(1)}, tmp_path / "c" / "model.bin")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("export.convert._write_index", full)
    with pytest.raises(OutputError, match="No space left"):
        convert(tmp_path / "c", tmp_path / "deep" / "o")
    assert list((tmp_path / "deep").iterdir()) == []


def test_a_published_awq_file_becomes_a_checkpoint_that_loads_with_its_integers(tmp_path: Path) -> None:
    source = write_nvila(tmp_path / "n", hidden=128, scales=None)
    packed, floats = quantized_copy(source, tmp_path, "llm-awq-v2", group_size=128, mark=False)
    weights = packed / "llm" / "model.safetensors"
    torch.save(load_file(weights), packed / "llm" / "nvila-w4-g128-awq-v2.pt")
    weights.unlink()
    with pytest.raises(ExportError, match=r"awq-v2\.pt, a pickle"):
        load_checkpoint(packed)
    convert(packed, tmp_path / "converted")
    model, family = load_checkpoint(tmp_path / "converted")
    assert (family, model.quantization) == ("nvila", "awq")
    judge, _ = load_checkpoint(floats)
    ids = torch.tensor([[3, 4, 5]])
    with torch.no_grad():
        ours, theirs = model.decoder(True).model(ids), judge.llm.model(ids)  # without the heads, whose bits differ
    torch.testing.assert_close(ours.last_hidden_state, theirs.last_hidden_state, atol=1e-5, rtol=1e-5)
