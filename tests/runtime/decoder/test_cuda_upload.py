"""Bringing weights and token table to the device: bytes, forms of the table, and how little of the host it takes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")

from kernels.arrays import from_bf16
from kernels.driver.opening import open_device
from runtime.decoder.cuda import CudaDecoderFiles, plan
from runtime.decoder.cuda.table import device_values, float_form, quantize_rows
from runtime.decoder.cuda.upload import Uploader
from runtime.decoder.token_table import TokenTable
from tests.runtime.decoder.cuda_bundles import NVILA_8B

MIB = 1 << 20

CHILD = """
import resource, sys
from dataclasses import replace
from types import SimpleNamespace
import numpy as np
from runtime.decoder.cuda import plan, CudaDecoderFiles
from runtime.decoder.cuda.model import load_weights
from runtime.decoder.cuda.table import load_table
from runtime.decoder.cuda.upload import Uploader
from runtime.decoder.cuda.weight_file import WeightFile
from runtime.decoder.token_table import TokenTable
from kernels.arrays import DeviceArray
from tests.runtime.decoder.test_cuda_upload import sparse_files
from pathlib import Path

copied = 0
def copy_in(ptr, source, stream):
    global copied
    copied += source.nbytes
nothing = SimpleNamespace(synchronize=lambda: None, record=lambda stream: None, close=lambda: None)
def pinned(nbytes):
    return SimpleNamespace(array=np.zeros(nbytes, np.uint8), free=lambda: None)
device = SimpleNamespace(copy_in=copy_in, create_event=lambda: nothing, pinned=pinned)
files = sparse_files(Path(sys.argv[1]))
items = [*plan.weight_items(files, ()), *plan.head_items(files), *plan.table_items(files, "i8")]
arrays = {item.name: DeviceArray(256, item.shape, item.dtype) for item in items}
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with Uploader(device, nothing) as uploader:
    load_weights(files, WeightFile(files), arrays, uploader)
    load_table(files, "i8", TokenTable(files.token_embeds, "f16", (files.embed_rows, files.hidden)), arrays, uploader)
print(copied, sum(item.nbytes for item in items), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def sparse_files(folder: Path) -> CudaDecoderFiles:
    """The files of a model of some 500 MB that take no room on the disk: all zeros."""
    files = CudaDecoderFiles(
        weights=folder / "t16.safetensors",
        token_embeds=folder / "token_embeds.bin",
        token_embeds_dtype="f16",
        **{**NVILA_8B, "layers": 3, "vocab": 24000, "embed_rows": 24000, "max_seq_len": 512},  # type: ignore[arg-type]
        rms_eps=1e-6,
        activations="f16",
        digest="0" * 64,
    )
    if not files.weights.exists():
        header: dict[str, Any] = {}
        at = 0
        for name, (dtype, shape) in files.tensors().items():
            size = plan.Item(name, "weights", dtype, shape).nbytes
            header[name] = {"dtype": dtype.upper(), "shape": shape, "data_offsets": [at, at + size]}
            at += size
        header["__metadata__"] = {"format": "t16", "version": "1", "group_size": "128", "activations": "f16"}
        header["__metadata__"]["digest"] = files.digest
        text = json.dumps(header).encode()
        with files.weights.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + at)
        with files.token_embeds.open("wb") as file:
            file.truncate(2 * files.embed_rows * files.hidden)
    return files


def test_weights_stream_through_one_buffer_whatever_the_models_size(tmp_path: Path) -> None:
    sparse_files(tmp_path)
    command = [sys.executable, "-c", CHILD, str(tmp_path)]
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, check=False)
    assert done.returncode == 0, done.stderr
    copied, wanted, grown_kib = map(int, done.stdout.split())
    assert copied == wanted > 480e6
    assert grown_kib * 1024 < 128 * MIB  # of 256 that were promised; the buffer alone is 32


def test_upload_brings_every_byte_in_order_and_in_whole_units() -> None:
    device = open_device("emulator")
    stream, memory = device.create_stream(), device.alloc(1000)
    source = np.random.default_rng(0).integers(0, 256, 1000, np.uint8)
    asked = []

    def fill(target: np.ndarray, offset: int) -> None:
        asked.append((offset, len(target)))
        target[:] = source[offset : offset + len(target)]

    with Uploader(device, stream, 128) as uploader:
        uploader.upload(memory.ptr, 1000, fill, unit=24)
    found = np.empty(1000, np.uint8)
    device.copy_out(found, memory.ptr, stream)
    stream.synchronize()
    np.testing.assert_array_equal(found, source)
    assert asked[:2] == [(0, 48), (48, 48)] and all(offset % 24 == 0 for offset, _ in asked)
    memory.free()
    stream.close()
    assert not any(device.live().values())
    device.close()


# --- token table ----------------------------------------------------------------------------------------------------


def test_rows_of_eight_bits_are_within_half_a_step_of_theirs() -> None:
    rows = np.random.default_rng(0).normal(0, 1, (50, 64)).astype(np.float32)
    rows[3] = 0
    levels, scales = quantize_rows(rows)
    error = np.abs(levels.astype(np.float64) * scales[:, None] - rows)
    # Half a step, and the roundings of the scale and of the quotient: 2^-23 of the largest value.
    bound = scales[:, None].astype(np.float64) / 2 + np.abs(rows).max(axis=1, keepdims=True) * 2.0**-22
    assert (error <= bound).all()
    assert np.abs(levels[[0, 1, 2]]).max(axis=1).tolist() == [127] * 3
    assert not levels[3].any()
    np.testing.assert_array_equal(device_values(rows, "i8"), levels.astype(np.float32) * scales[:, None])


@pytest.mark.parametrize(
    ("values", "form"), [([1.0, 65504.0, 2.0**-24], "f16"), ([1.0, 3e38], "bf16"), ([1.0, 1.0 + 2.0**-20], "f16")]
)
def test_a_table_of_f32_takes_the_form_that_holds_it(tmp_path: Path, values: list[float], form: str) -> None:
    rows = np.zeros((4, 8), np.float32)
    rows[2, : len(values)] = values
    if form == "bf16":
        rows[2, 1] = from_bf16(np.array([0x7F00], np.uint16))[0]
    rows.tofile(tmp_path / "table.bin")
    table = TokenTable(tmp_path / "table.bin", "f32", (4, 8))
    assert float_form(table) == form
    table.close()
