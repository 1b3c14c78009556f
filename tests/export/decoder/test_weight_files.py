"""One file or many shards as one table of tensors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from export.decoder.weight_files import INDEX, SINGLE, WeightFiles
from runtime.errors import ExportError

A, B = np.arange(6, dtype=np.float32).reshape(3, 2), np.ones(4, np.float32)


def shards(folder: Path, weight_map: dict[str, str]) -> Path:
    save_file({"a": A}, folder / "model-1.safetensors")
    save_file({"b": B}, folder / "model-2.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return folder


def test_shards_read_like_one_file(tmp_path: Path) -> None:
    shards(tmp_path, {"a": "model-1.safetensors", "b": "model-2.safetensors"})
    with WeightFiles(tmp_path) as files:
        assert files.names() == {"a", "b"}
        assert np.array_equal(files.read("a"), A)
        assert np.array_equal(files.read("b"), B)
        assert files.info("a").shape == (3, 2)
        assert [path.name for path in files.paths] == [INDEX, "model-1.safetensors", "model-2.safetensors"]
        with pytest.raises(ExportError, match="no tensor 'c'"):
            files.read("c")


def test_a_single_file_wins_over_an_index(tmp_path: Path) -> None:
    shards(tmp_path, {"a": "model-1.safetensors", "b": "model-2.safetensors"})
    save_file({"only": A}, tmp_path / SINGLE)
    with WeightFiles(tmp_path) as files:
        assert files.names() == {"only"}


def test_shards_behind_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    save_file({"a": A}, tmp_path / "blobs" / "1234")
    (tmp_path / "snapshot" / SINGLE).symlink_to("../blobs/1234")
    with WeightFiles(tmp_path / "snapshot") as files:
        assert np.array_equal(files.read("a"), A)


@pytest.mark.parametrize("shard", ["../model-1.safetensors", "/etc/passwd", "x/model-1.safetensors", "", ".", "..", 7])
def test_a_shard_outside_the_folder_is_refused(tmp_path: Path, shard: str) -> None:
    shards(tmp_path, {"a": shard})
    with pytest.raises(ExportError, match="not a file of this folder"):
        WeightFiles(tmp_path)


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": "model-1.safetensors", "b": "model-1.safetensors"}, "'b' is not in model-1"),
        ({"a": "model-2.safetensors", "b": "model-1.safetensors"}, "is in model-1.safetensors too"),
        ({"a": "model-9.safetensors"}, r"model-9\.safetensors: cannot be opened"),
        ({}, "no weight_map"),
    ],
)
def test_an_index_that_does_not_fit_its_shards_is_refused(
    tmp_path: Path, weight_map: dict[str, str], message: str
) -> None:
    with pytest.raises(ExportError, match=message):
        WeightFiles(shards(tmp_path, weight_map))


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    shards(tmp_path, {"a": "model-1.safetensors", "b": "model-2.safetensors"})
    save_file({"b": B, "a": A}, tmp_path / "model-2.safetensors")
    with pytest.raises(ExportError, match=r"'a' is in model-2\.safetensors too"):
        WeightFiles(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_a_pickle_is_refused_with_the_command_that_converts_it(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04.")
    with pytest.raises(ExportError, match=f"{name} is a pickle") as caught:
        WeightFiles(tmp_path)
    assert f"export.convert {tmp_path}" in str(caught.value.hint)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"neither model\.safetensors nor"):
        WeightFiles(tmp_path)
