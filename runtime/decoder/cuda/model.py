"""The weights of a decoder in device memory, as the launchers take them, and how they get there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kernels.arrays import DeviceArray
from kernels.launch.weights import T16Weight
from kernels.packing.t16 import TILE_ROWS
from runtime.decoder.cuda.plan import head_rows
from runtime.decoder.cuda.shape import CudaDecoderFiles
from runtime.decoder.cuda.upload import Uploader
from runtime.decoder.cuda.weight_file import WeightFile

Arrays = Mapping[str, DeviceArray]
Bytes = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Layer:
    """Matrices, biases and norms of one layer."""

    qkv: T16Weight
    qkv_bias: DeviceArray | None
    o: T16Weight
    o_bias: DeviceArray | None
    gate_up: T16Weight
    down: T16Weight
    input_norm: DeviceArray
    post_norm: DeviceArray


@dataclass(frozen=True, slots=True)
class HeadPart:
    """Rows of the LM head from ``first_id`` on, and the first of its tiles among those of all parts."""

    weight: T16Weight
    first_id: int
    first_tile: int


@dataclass(frozen=True, slots=True)
class Model:
    """Everything that a pass reads and never writes, the token table aside."""

    layers: tuple[Layer, ...]
    norm: DeviceArray
    head: tuple[HeadPart, ...]
    rope: DeviceArray


def model_of(files: CudaDecoderFiles, arrays: Arrays) -> Model:
    """The arrays of the plan, put together."""
    layers = tuple(_layer(files, arrays, f"layers.{index}") for index in range(files.layers))
    return Model(layers, arrays["norm"], tuple(_head(files, arrays)), arrays["rope"])


def load_weights(files: CudaDecoderFiles, file: WeightFile, arrays: Arrays, uploader: Uploader) -> None:
    """Fill the arrays of weights, head and rotation."""
    whole = [(name, name, 0) for name in (*files.tensors(), *file.biases) if not name.startswith("head.")]
    for item, tensor, start in (*whole, *_head_sources(files, arrays)):
        target = arrays[item]

        def fill(view: Bytes, offset: int, tensor: str = tensor, start: int = start) -> None:
            file.read(tensor, start + offset, view)

        uploader.upload(target.ptr, target.nbytes, fill)
    frequencies = np.array(files.rope_frequencies, np.float32)
    row_bytes = 8 * len(frequencies)

    def rotations(view: Bytes, offset: int) -> None:
        first = offset // row_bytes
        view.view(np.float32)[:] = rope_rows(frequencies, first, first + len(view) // row_bytes).reshape(-1)

    uploader.upload(arrays["rope"].ptr, arrays["rope"].nbytes, rotations, unit=row_bytes)


def rope_rows(frequencies: F32, first: int, end: int) -> F32:
    """(cos, sin) of position times frequency, f32 [end - first, head_dim / 2, 2].

    Angles are rounded to f32 as in the models' own code, so that long contexts see the same angles that they were
    trained with; cos and sin of them are computed in f64.
    """
    angles = (np.arange(first, end, dtype=np.float32)[:, None] * frequencies[None, :]).astype(np.float64)
    return np.stack([np.cos(angles), np.sin(angles)], axis=-1).astype(np.float32)


def _head_sources(files: CudaDecoderFiles, arrays: Arrays) -> list[tuple[str, str, int]]:
    """(array, tensor of the file, byte where the array begins in it) of the head's parts, which are runs of tiles."""
    sources, at = [], dict.fromkeys(("qw", "sc", "zp"), 0)
    for part in range(len(head_rows(files))):
        for kind in at:
            name = f"head.{part}.{kind}"
            sources.append((name, f"head.{kind}", at[kind]))
            at[kind] += arrays[name].nbytes
    return sources


def _layer(files: CudaDecoderFiles, arrays: Arrays, at: str) -> Layer:
    matrices = {
        name: _packed(arrays, f"{at}.{name}", n, k, files.group_size) for name, (n, k) in files.matrices().items()
    }
    return Layer(
        qkv=matrices["qkv"],
        qkv_bias=arrays.get(f"{at}.qkv.bias"),
        o=matrices["o"],
        o_bias=arrays.get(f"{at}.o.bias"),
        gate_up=matrices["gate_up"],
        down=matrices["down"],
        input_norm=arrays[f"{at}.input_norm"],
        post_norm=arrays[f"{at}.post_norm"],
    )


def _head(files: CudaDecoderFiles, arrays: Arrays) -> Iterator[HeadPart]:
    for part, rows in enumerate(head_rows(files)):
        weight = _packed(arrays, f"head.{part}", rows.count, files.head()[1], files.group_size)
        yield HeadPart(weight, rows.first, rows.first // TILE_ROWS)


def _packed(arrays: Arrays, name: str, n: int, k: int, group_size: int) -> T16Weight:
    return T16Weight(arrays[f"{name}.qw"], arrays[f"{name}.sc"], arrays[f"{name}.zp"], n, k, group_size)
