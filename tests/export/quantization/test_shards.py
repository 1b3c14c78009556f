"""Safetensors files written from pieces: the format's own library reads them, and shards add up."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from export.quantization.shards import Entry, array_entry, as_f16, plan_shards, write_safetensors, write_shards

ARRAYS = {
    "odd": np.arange(7, dtype=np.float16),
    "words": np.arange(12, dtype=np.int32).reshape(3, 4) - 5,
    "shape": np.array([3, 4], np.int64),
    "scalar": np.array(2.5, np.float32),
}


def test_file_is_that_of_the_formats_own_writer(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "ours.safetensors", [array_entry(name, array) for name, array in ARRAYS.items()])
    save_file(ARRAYS, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    assert (tmp_path / "ours.safetensors").read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()


def test_every_tensor_lies_at_a_multiple_of_its_items(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_safetensors(path, [array_entry(name, array) for name, array in ARRAYS.items()])
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    for name, array in ARRAYS.items():
        assert (8 + length + header[name]["data_offsets"][0]) % array.itemsize == 0


def test_shards_hold_everything_once_and_the_index_says_where(tmp_path: Path) -> None:
    arrays = {f"t{index}": np.full((index + 1, 10), index, np.float16) for index in range(6)}  # 20, 40, … 120 bytes
    shards = plan_shards([array_entry(name, array) for name, array in arrays.items()], limit=130)
    assert [[entry.name for entry in entries] for _, entries in shards] == [
        ["t0", "t1", "t2"],  # 120
        ["t3"],
        ["t4"],
        ["t5"],
    ]
    written: list[int] = []
    write_shards(tmp_path, shards, written.append)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert sum(written) == index["metadata"]["total_size"] == sum(array.nbytes for array in arrays.values())
    assert sorted(path.name for path in tmp_path.glob("*.safetensors")) == [
        f"model-{number:05d}-of-00004.safetensors" for number in range(1, 5)
    ]
    for name, array in arrays.items():
        with safe_open(tmp_path / index["weight_map"][name], "numpy") as file:
            np.testing.assert_array_equal(file.get_tensor(name), array)


def test_one_shard_has_no_index_and_a_large_tensor_one_of_its_own(tmp_path: Path) -> None:
    assert [name for name, _ in plan_shards([array_entry("a", ARRAYS["odd"])], 1)] == ["model.safetensors"]
    write_shards(tmp_path, plan_shards([array_entry("a", ARRAYS["odd"])]), lambda size: None)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    np.testing.assert_array_equal(load_file(tmp_path / "model.safetensors")["a"], ARRAYS["odd"])


def test_halving_rounds_to_nearest_and_refuses_what_does_not_fit() -> None:
    blocks = [np.array([[1 + 2**-11, 65519.0]], np.float32), np.array([[-1e-9, 3.14159]], np.float32)]
    raw = b"".join(as_f16("w", iter(blocks)))
    np.testing.assert_array_equal(
        np.frombuffer(raw, "<f2"), np.array([1.0, 65504.0, -0.0, 3.14159], np.float64).astype(np.float16)
    )
    with pytest.raises(ValueError, match=r"norm\.weight: .*largest: 65520"):
        list(as_f16("norm.weight", iter([np.array([65520.0], np.float32)])))


def test_an_entry_that_gives_other_than_it_announced_is_a_bug(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="3 bytes written, 4 announced"):
        write_safetensors(tmp_path / "x", [Entry("a", "F16", (2,), 4, lambda: [b"abc"])])
