"""Known answers of rmsnorm_residual."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kernels.arrays import Activation, from_host_dtype, to_host_dtype
from kernels.cases.numbers import uniform
from kernels.kernel import Case
from kernels.launch.norm import rmsnorm_residual
from kernels.reference import norm as reference
from kernels.workbench import Workbench

EPS = 1e-6


@dataclass(frozen=True)
class Shape:
    """One launch: tokens, width, type, and the options."""

    tokens: int
    width: int
    dtype: Activation
    added: bool = True
    copies: int = 1
    scale: float = 3.0


SHAPES = (
    Shape(1, 8, "f16"),
    Shape(3, 64, "f16", added=False, copies=2),
    Shape(2, 1536, "bf16"),
    Shape(8, 136, "bf16", copies=2, scale=1e-4),
    Shape(1, 3584, "f16", scale=200.0),
)


def cases() -> Iterator[Case]:
    """Rows below, at and above what one block takes at once; tiny and large values; cancelling additions."""
    for seed, shape in enumerate(SHAPES):
        yield make(shape, seed)


def make(shape: Shape, seed: int) -> Case:
    """A case from splitmix numbers. Every fourth value of delta nearly cancels the residual's."""
    size = (shape.tokens, shape.width)
    residual = uniform(seed, size, -shape.scale, shape.scale).astype(np.float32)
    gamma = uniform(seed + 100, size[1:], -2.0, 2.0).astype(np.float32)
    delta = uniform(seed + 200, size, -shape.scale, shape.scale)
    delta[:, ::4] = -residual[:, ::4]
    host = to_host_dtype(delta, shape.dtype)
    added = from_host_dtype(host, shape.dtype) if shape.added else None

    def run(bench: Workbench) -> Mapping[str, npt.NDArray[Any]]:
        stream, y = bench.upload(residual, "f32"), bench.empty((size[0], shape.copies * size[1]), shape.dtype)
        rmsnorm_residual(
            bench.kernels,
            bench.stream,
            stream,
            bench.upload(gamma, "f32"),
            y,
            eps=EPS,
            delta=bench.upload(delta, shape.dtype) if shape.added else None,
            copies=shape.copies,
        )
        return {"residual": bench.download(stream), "y": bench.download(y)}

    total, normed = reference.rmsnorm_residual(residual, gamma, eps=EPS, delta=added, copies=shape.copies)
    of_total, of_normed = reference.bounds(total, normed, shape.dtype, added=shape.added)
    return Case(
        "rmsnorm_residual",
        f"rmsnorm_residual_{shape.dtype}",
        f"{shape.tokens}x{shape.width}{'+delta' * shape.added} x{shape.copies}",
        run,
        {"residual": total, "y": normed},
        {"residual": of_total, "y": of_normed},
    )
