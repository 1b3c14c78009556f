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
from runtime.errors import ExportError, OutputError
from tests.export.small_checkpoints import write_llava

pytestmark = pytest.mark.torch


def pickled(root: Path, shards: int = 1) -> dict[str, Any]:
    """Turns a checkpoint's weights into pickles; returns them."""
    weights = load_file(root / "model.safetensors")
    (root / "model.safetensors").unlink()
    names = sorted(weights)
    for number in range(shards):
        part = {name: weights[name] for name in names[number::shards]}
        file = "pytorch_model.bin" if shards == 1 else f"pytorch_model-{number + 1:05d}-of-{shards:05d}.bin"
        torch.save(part, root / file)
    if shards > 1:
        (root / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {}}))
    return weights


@pytest.mark.parametrize("shards", [1, 3])
def test_converted_checkpoint_can_be_exported(tmp_path: Path, shards: int) -> None:
    root = write_llava(tmp_path / "l")
    weights = pickled(root, shards)
    with pytest.raises(ExportError):
        read_checkpoint(root)
    assert main([str(root), "--out", str(tmp_path / "converted")]) == 0
    checkpoint = read_checkpoint(tmp_path / "converted")
    found: dict[str, Any] = {}
    for path in checkpoint.files:
        found |= load_file(path) if path.suffix == ".safetensors" else {}
    assert set(found) == set(weights)
    assert all(torch.equal(found[name], weights[name]) for name in weights)


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch /tmp/should-not-exist-jetson-vlm",)


def test_code_in_a_pickle_is_refused_and_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c").mkdir()
    torch.save({"weight": Evil()}, tmp_path / "c" / "pytorch_model.bin")
    assert main([str(tmp_path / "c"), "--out", str(tmp_path / "o")]) == 4
    assert "more than tensors" in capsys.readouterr().err
    assert not Path("/tmp/should-not-exist-jetson-vlm").exists()


def test_damaged_empty_and_existing_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    save_file({"a": torch.zeros(1)}, tmp_path / "c" / "model.safetensors")
    with pytest.raises(ExportError, match="need no conversion|no "):
        convert(tmp_path / "c", tmp_path / "o")
    (tmp_path / "c" / "model.bin").write_bytes(b"nonsense")
    with pytest.raises(ExportError, match="damaged"):
        convert(tmp_path / "c", tmp_path / "o")
    with pytest.raises(OutputError, match="exists"):
        convert(tmp_path / "c", tmp_path / "c")
    torch.save([1, 2], tmp_path / "c" / "model.bin")
    with pytest.raises(ExportError, match="no table"):
        convert(tmp_path / "c", tmp_path / "p")
