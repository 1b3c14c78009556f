"""Files of a CUDA decoder with the shape of a model and random weights, for the benchmark of decoding."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from kernels.arrays import NUMPY
from runtime.decoder.cuda import CudaDecoderFiles
from runtime.decoder.cuda.weight_file import DTYPES, FORMAT, VERSION
from scripts.bench.shapes import DecoderShape

BLOCK = 2**22  # values that are made; longer tensors repeat them
DIGEST = "random weights"


def random_files(model: DecoderShape, folder: Path, max_seq_len: int) -> CudaDecoderFiles:
    """Write both files to ``folder`` (as large as the model's own) and describe them."""
    files = CudaDecoderFiles(
        weights=folder / "t16.safetensors",
        token_embeds=folder / "token_embeds.bin",
        token_embeds_dtype="f16",
        embed_rows=model.vocab,
        hidden=model.hidden,
        layers=model.layers,
        heads=model.heads,
        kv_heads=model.kv_heads,
        head_dim=model.head_dim,
        ffn=model.ffn,
        vocab=model.vocab,
        max_seq_len=max_seq_len,
        rope_frequencies=tuple(10000.0 ** (-2 * i / model.head_dim) for i in range(model.head_dim // 2)),
        rms_eps=1e-6,
        group_size=model.group_size,
        head_bits=4,
        activations="f16",
        digest=DIGEST,
    )
    random = np.random.default_rng(0)
    with files.token_embeds.open("wb") as file:
        _write(file, random.standard_normal(min(BLOCK, model.vocab * model.hidden)).astype("<f2"), _table_size(files))
    _write_tensors(files, random)
    return files


def _table_size(files: CudaDecoderFiles) -> int:
    return files.embed_rows * files.hidden


def _write_tensors(files: CudaDecoderFiles, random: np.random.Generator) -> None:
    """The safetensors format: length of the header, header, tensors one after another."""
    header: dict[str, Any] = {
        "__metadata__": {
            "format": FORMAT,
            "version": VERSION,
            "group_size": str(files.group_size),
            "activations": files.activations,
            "digest": files.digest,
        }
    }
    position = 0
    for name, (dtype, shape) in files.tensors().items():
        end = position + int(np.prod(shape)) * np.dtype(NUMPY[dtype]).itemsize
        header[name] = {"dtype": DTYPES[dtype], "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with files.weights.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for values, count in _contents(files, random):
            _write(file, values, count)


def _contents(files: CudaDecoderFiles, random: np.random.Generator) -> Iterator[tuple[npt.NDArray[Any], int]]:
    """(values to repeat, how many there are in all) per tensor: weights of the size that keeps activations in range."""
    words = random.integers(0, 2**32, BLOCK // 4, np.uint32)
    for name, (_, shape) in files.tensors().items():
        kind, count = name.rpartition(".")[2], int(np.prod(shape))
        if kind == "qw":
            yield words, count
        elif kind == "sc":
            inputs = shape[1] * files.group_size
            yield np.full(min(count, BLOCK), 0.2 / np.sqrt(inputs), np.float16), count
        elif kind == "zp":
            yield np.full(min(count, BLOCK), 0x88, np.uint8), count
        else:
            yield np.ones(count, np.float32), count


def _write(file: BinaryIO, values: npt.NDArray[Any], count: int) -> None:
    while count > 0:
        file.write(values[:count].tobytes())
        count -= len(values)
