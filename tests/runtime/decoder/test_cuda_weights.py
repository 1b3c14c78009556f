"""The file of T16 weights: what the manifest says must stand in it, to the tensor and to the byte."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")

from safetensors import safe_open
from safetensors.numpy import save_file

from kernels.driver.opening import open_device
from kernels.packing.t16 import unpack_t16
from runtime.decoder.cuda import CudaDecoder, CudaDecoderFiles
from runtime.decoder.cuda.model import rope_rows
from runtime.decoder.cuda.weight_file import WeightFile
from runtime.decoder.options import CudaOptions
from runtime.errors import BundleError
from tests.decoder_models import with_shape
from tests.runtime.decoder.cuda_bundles import SMALL, opened, small_files

Change = Callable[[dict[str, Any], dict[str, str]], None]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> CudaDecoderFiles:
    return small_files(tmp_path_factory.mktemp("decoder"))


def changed(files: CudaDecoderFiles, target: Path, change: Change) -> CudaDecoderFiles:
    """A copy of the file with other tensors or metadata."""
    with safe_open(files.weights, "numpy") as file:
        names = file.keys()
        tensors = {name: file.get_tensor(name) for name in names}
        metadata = dict(file.metadata())
    change(tensors, metadata)
    save_file(tensors, target, metadata=metadata)
    return replace(files, weights=target)


REFUSED: dict[str, tuple[Change, str]] = {
    "another format": (lambda t, m: m.update(format="t32"), "format is 't32', by the manifest 't16'"),
    "another version": (lambda t, m: m.update(version="2"), "version is '2'"),
    "another group size": (lambda t, m: m.update(group_size="64"), "group_size is '64', by the manifest '32'"),
    "another digest": (lambda t, m: m.update(digest="f" * 64), "digest is 'ffff"),
    "other activations": (lambda t, m: m.update(activations="bf16"), "activations is 'bf16', by the manifest 'f16'"),
    "no digest": (lambda t, m: m.pop("digest") and None, "digest is None"),
    "a missing tensor": (lambda t, m: t.pop("norm") is None, r"norm is absent, by the manifest F32 \[128\]"),
    "one too many": (lambda t, m: t.update(more=np.zeros(1, np.float32)), "more is F32 .*, by the manifest absent"),
    "another shape": (lambda t, m: t.update(norm=np.zeros(129, np.float32)), r"norm is F32 \[129\]"),
    "another dtype": (lambda t, m: t.update(norm=np.zeros(128, np.float16)), r"norm is F16 \[128\], by .* F32"),
}


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_a_file_that_the_manifest_does_not_describe_is_refused(
    files: CudaDecoderFiles, tmp_path: Path, change: Change, message: str
) -> None:
    with pytest.raises(BundleError, match=message) as caught:
        WeightFile(changed(files, tmp_path / "other.safetensors", change))
    assert "other.safetensors" in caught.value.message and "--decoder both" in str(caught.value.hint)


def test_a_missing_or_damaged_file_is_refused(files: CudaDecoderFiles, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="cannot be opened"):
        WeightFile(replace(files, weights=tmp_path / "none"))
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(files.weights.read_bytes()[:-10])
    with pytest.raises(BundleError, match="is cut short"):
        WeightFile(replace(files, weights=cut))


def test_a_file_that_is_cut_while_it_is_read_leaves_nothing_open(
    files: CudaDecoderFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(files.weights.read_bytes())
    read = WeightFile.read

    def cutting(self: WeightFile, name: str, offset: int, target: np.ndarray) -> None:
        copy.write_bytes(files.weights.read_bytes()[:5000])
        read(self, name, offset, target)

    monkeypatch.setattr(WeightFile, "read", cutting)
    device = open_device("emulator")
    with pytest.raises(BundleError, match="ends inside"):
        CudaDecoder(replace(files, weights=copy), CudaOptions(), device, owned=False)
    assert not any(device.live().values())
    device.close()


def test_every_byte_of_the_file_is_on_the_device(tmp_path: Path) -> None:
    """With biases, and read back through the packing's own inverse."""
    files = small_files(tmp_path, with_shape(**{**vars(SMALL), "family": "qwen2"}), group_size=64)
    with safe_open(files.weights, "numpy") as file, opened(files) as decoder:
        arrays, device = decoder._engine._fixed.arrays, decoder._engine.device
        names = file.keys()
        for name in names:
            expected = file.get_tensor(name)
            found = np.empty_like(expected)
            device.copy_out(found, arrays[name.replace("head.", "head.0.")].ptr, decoder._engine.stream)
            decoder._engine.stream.synchronize()
            np.testing.assert_array_equal(found, expected, err_msg=name)
        assert any(name.endswith("qkv.bias") for name in names)
        tensors = {part: file.get_tensor(f"head.{part}") for part in ("qw", "sc", "zp")}
        assert unpack_t16(tensors, files.head(), 64).shape == (SMALL.vocab, SMALL.hidden)
        angles = np.empty(arrays["rope"].shape, np.float32)
        device.copy_out(angles, arrays["rope"].ptr, decoder._engine.stream)
        decoder._engine.stream.synchronize()
    position = np.float32(files.max_seq_len - 1) * np.array(files.rope_frequencies, np.float32)
    np.testing.assert_array_equal(angles[-1, :, 0], np.cos(position.astype(np.float64)).astype(np.float32))
    np.testing.assert_array_equal(angles[-1, :, 1], np.sin(position.astype(np.float64)).astype(np.float32))
    np.testing.assert_array_equal(angles[10:20], rope_rows(np.array(files.rope_frequencies, np.float32), 10, 20))
