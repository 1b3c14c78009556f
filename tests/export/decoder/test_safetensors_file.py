"""Reading safetensors in pieces, and refusing what is not one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from export.decoder.safetensors_file import SafetensorsFile, to_f32
from runtime.errors import ExportError

VALUES = np.random.default_rng(0).normal(0, 1, (7, 5)).astype(np.float32)


def write_raw(path: Path, header: Any, data: bytes) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(begin: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_whole_tensors_keep_their_integers_and_widen_their_floats(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    stored = {
        np.dtype(kind).name: np.arange(-6, 6).astype(kind).reshape(3, 4)
        for kind in (np.int8, np.int16, np.int32, np.int64, np.float16, np.float64)
    }
    save_file({**stored, "bytes": np.arange(3, dtype=np.uint8)}, path)
    with SafetensorsFile(path) as file:
        for name, array in stored.items():
            found = file.read_array(name)
            assert found.dtype == (array.dtype if array.dtype.kind == "i" else np.float32)
            assert np.array_equal(found, array)
        with pytest.raises(ExportError, match="bytes is U8, expected one of F32, F16, BF16, F64, I64"):
            file.read_array("bytes")


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
def test_rows_equal_the_librarys_own_reader(tmp_path: Path, dtype: type) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": VALUES.astype(dtype), "b": np.arange(4, dtype=np.float32)}, path, metadata={"format": "pt"})
    with SafetensorsFile(path) as file:
        assert set(file.tensors) == {"a", "b"}
        assert np.array_equal(file.read_rows("a", 2, 5), VALUES.astype(dtype)[2:5].astype(np.float32))
        assert np.array_equal(file.read_rows("b", 0, 4), np.arange(4, dtype=np.float32))
        blocks = list(file.iter_rows("a", block_bytes=60))  # three rows of five f32
        assert [len(block) for block in blocks] == [3, 3, 1]
        assert np.array_equal(np.concatenate(blocks), VALUES.astype(dtype).astype(np.float32))


def test_every_bfloat16_is_the_upper_half_of_its_f32() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    patterns = np.arange(1 << 16, dtype=np.uint16)
    expected = patterns.view(ml_dtypes.bfloat16).astype(np.float32)
    found = to_f32(patterns.view(np.uint8), "BF16")
    assert np.array_equal(found.view(np.uint32)[~np.isnan(expected)], expected.view(np.uint32)[~np.isnan(expected)])
    assert np.isnan(found[np.isnan(expected)]).all()


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        ({"a": entry(0, 16, [4])}, 12, "is cut short"),
        ({"a": entry(0, 16, [4])}, 20, "belong to no tensor"),
        ({"a": entry(0, 16, [5])}, 16, r"F32 \[5\] does not take 16 bytes"),
        ({"a": entry(0, 16, [4]), "b": entry(8, 24, [4])}, 24, "b begins at byte"),
        ({"a": entry(0, 16, [4]), "b": entry(20, 36, [4])}, 36, "b begins at byte"),
        ({"a": entry(0, 0, [-1, 4])}, 0, "wrong dtype, shape"),
        ({"a": entry(0, 4, [True])}, 4, "wrong dtype, shape"),
        ({"a": entry(16, 0, [4])}, 0, "does not take"),
        ({"a": {"dtype": "F32", "shape": [1]}}, 4, "is not described by"),
        ([1, 2], 0, "no table of"),
        (b'{"a": 1, "a": 2}', 0, "appears twice"),
        (b"{", 0, "not valid JSON"),
        (b"\xff\xfe", 0, "not valid JSON"),
    ],
)
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, header: Any, data: int, message: str) -> None:
    path = write_raw(tmp_path / "model.safetensors", header, bytes(data))
    with pytest.raises(ExportError, match=message) as caught:
        SafetensorsFile(path)
    assert "model.safetensors" in caught.value.message
    assert caught.value.hint is not None


def test_a_header_longer_than_the_file_is_refused_without_being_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes((1 << 60).to_bytes(8, "little") + b"{}")
    with pytest.raises(ExportError, match="at most 2 are possible"):
        SafetensorsFile(path)


@pytest.mark.parametrize("size", [0, 7])
def test_a_file_of_a_few_bytes_is_refused(tmp_path: Path, size: int) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(size))
    with pytest.raises(ExportError, match="too few"):
        SafetensorsFile(path)


def test_a_file_cut_short_after_opening_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": VALUES}, path)
    with SafetensorsFile(path) as file:
        with path.open("r+b") as writer:
            writer.truncate(path.stat().st_size - 40)
        file.read_rows("a", 0, 4)
        with pytest.raises(ExportError, match="ends inside a"):
            file.read_rows("a", 4, 7)


def test_integers_are_not_weights(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": np.arange(4)}, path)
    with SafetensorsFile(path) as file, pytest.raises(ExportError, match="a is I64"):
        file.read_rows("a", 0, 4)


def test_a_missing_file_is_an_export_error(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="cannot be opened"):
        SafetensorsFile(tmp_path / "none.safetensors")
