"""A safetensors file that is written front to back: what other libraries read, and what a wrong order does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

pytest.importorskip("onnx")

from export.decoder.external_data import DataFile
from export.decoder.safetensors_writer import SafetensorsWriter, TensorSpec

SPECS = {"a": TensorSpec("F32", (2, 3)), "b": TensorSpec("U32", (4,)), "c": TensorSpec("U8", (3, 1))}
METADATA = {"format": "test", "digest": "0" * 8}
A = np.arange(6, dtype=np.float32).reshape(2, 3)
B = np.array([1, 2, 3, 2**32 - 1], np.uint32)
C = np.array([[7], [8], [9]], np.uint8)


def test_what_is_written_in_parts_is_read_as_a_whole(tmp_path: Path) -> None:
    with DataFile(tmp_path / "x.safetensors") as file:
        writer = SafetensorsWriter(file, SPECS, METADATA)
        writer.append("a", A[:1])
        writer.append("a", A[1:])
        writer.append("b", B)
        writer.replace_metadata("digest", "cafebabe")
        writer.append("c", C)
        writer.finish()
    with safe_open(tmp_path / "x.safetensors", framework="numpy") as read:
        assert read.metadata() == {"format": "test", "digest": "cafebabe"}
        for name, values in (("a", A), ("b", B), ("c", C)):
            found = read.get_tensor(name)
            assert np.array_equal(found, values)
            assert found.dtype == values.dtype
    header = int.from_bytes((tmp_path / "x.safetensors").read_bytes()[:8], "little")
    assert (8 + header) % 64 == 0


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("b", B, "b is written where a is expected"),
        ("a", A.astype(np.float64), "float64, expected"),
        ("a", np.zeros((3, 3), np.float32), "36 bytes of float32, expected 24"),
    ],
)
def test_a_tensor_that_was_not_announced_so_is_refused(
    tmp_path: Path, name: str, values: np.ndarray, message: str
) -> None:
    with DataFile(tmp_path / "x") as file:
        writer = SafetensorsWriter(file, SPECS, METADATA)
        with pytest.raises(ValueError, match=message):
            writer.append(name, values)


def test_a_file_that_lacks_something_is_not_finished(tmp_path: Path) -> None:
    with DataFile(tmp_path / "x") as file:
        writer = SafetensorsWriter(file, SPECS, METADATA)
        writer.append("a", A[:1])
        with pytest.raises(ValueError, match="a: 12 bytes were not written"):
            writer.finish()
        with pytest.raises(ValueError, match="digest: 9 characters, 8 were announced"):
            writer.replace_metadata("digest", "cafebabe0")
        writer.append("a", A[1:])
        writer.append("b", B)
        writer.append("c", C)
        with pytest.raises(ValueError, match="c is written where the end is expected"):
            writer.append("c", C)
        writer.finish()


def test_only_bytes_that_are_there_are_written_over(tmp_path: Path) -> None:
    with DataFile(tmp_path / "x") as file:
        file.write_bytes(b"abcdef")
        file.overwrite(2, b"XY")
        file.write_bytes(b"g")
        with pytest.raises(ValueError, match="bytes 6 to 8 of 7"):
            file.overwrite(6, b"12")
    assert (tmp_path / "x").read_bytes() == b"abXYefg"
