"""Streams linears of a checkpoint, in integers, into the external data of the graph."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from export.decoder.checkpoint import DecoderCheckpoint, Linear
from export.decoder.external_data import ExternalData
from export.decoder.integer_stream import BLOCK_BYTES, IntegerStream, finite
from export.decoder.t16 import T16File
from kernels.packing import IntWeight, pack
from runtime.errors import ExportError

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class StoredLinear:
    """One MatMulNBits: names of its initialisers (``bias`` empty where there is none), shape, bits of a weight."""

    weight: str
    scales: str
    zeros: str
    bias: str
    n: int
    k: int
    bits: int


class LinearStore:
    """Stores linears in the order in which they are asked for, in integers; linears that read the same input as one
    matrix with their rows below one another.

    ``t16`` gets the same integers as they pass by.
    """

    def __init__(
        self,
        checkpoint: DecoderCheckpoint,
        external: ExternalData,
        integers: IntegerStream,
        t16: T16File | None = None,
    ) -> None:
        self._checkpoint, self._external, self._integers, self._t16 = checkpoint, external, integers, t16
        self._group_size = integers.group_size

    def store(self, name: str, linears: Sequence[Linear], bits: int = 4) -> StoredLinear:
        """Stores one or several linears of the same input as the matrix ``name``; ``bits`` of a weight are 4 or 8."""
        n, k = sum(linear.n for linear in linears), linears[0].k
        scales: list[npt.NDArray[Any]] = []
        zeros: list[npt.NDArray[Any]] = []
        shape = (n, k // self._group_size, self._group_size * bits // 8)
        integers = self._integers.matrix(linears, bits)
        if self._t16 is not None:
            integers = self._t16.through(name, linears, integers)
        blocks = _packed_blocks(integers, scales, zeros)
        weight = self._external.add_blocks(f"{name}.weight", np.dtype(np.uint8), shape, n * k * bits // 8, blocks)
        return StoredLinear(
            weight=weight,
            scales=self._external.add(f"{name}.scales", np.concatenate(scales)),
            zeros=self._external.add(f"{name}.zero_points", np.concatenate(zeros)),
            bias=self._store_bias(name, linears),
            n=n,
            k=k,
            bits=bits,
        )

    def store_f16(self, name: str, linear: Linear) -> str:
        """Stores a linear without bias as the f16 matrix ``name``, [n, k]; it is no part of the digest."""
        shape = (linear.n, linear.k)
        blocks = self._f16_blocks(linear)
        return self._external.add_blocks(name, np.dtype("<f2"), shape, 2 * linear.n * linear.k, blocks)

    def _f16_blocks(self, linear: Linear) -> Iterator[npt.NDArray[np.float16]]:
        for rows in self._checkpoint.rows(linear, BLOCK_BYTES):
            yield as_f16(linear.name, rows)
            self._integers.advance(rows.size)

    def _store_bias(self, name: str, linears: Sequence[Linear]) -> str:
        if not linears[0].bias:
            return ""
        bias = np.concatenate([finite(f"{linear.name}.bias", self._checkpoint.bias(linear)) for linear in linears])
        return self._external.add(f"{name}.bias", bias)


def _packed_blocks(
    integers: Iterator[IntWeight], scales: list[npt.NDArray[Any]], zeros: list[npt.NDArray[Any]]
) -> Iterator[npt.NDArray[Any]]:
    """A matrix' blocks of rows; nothing of it is held when they have been taken."""
    for weight in integers:
        tensors = pack(weight, "matmulnbits")
        scales.append(tensors["scales"])
        zeros.append(tensors["zero_points"])
        yield tensors["B"]


def as_f16(name: str, values: F32) -> npt.NDArray[np.float16]:
    """The values rounded to f16, little-endian; ExportError that names one which f16 cannot hold."""
    with np.errstate(over="ignore"):
        half = values.astype("<f2")
    if not np.isfinite(half).all():
        worst = float(values.reshape(-1)[int(np.argmin(np.isfinite(half)))])
        raise ExportError(f"{name} has the value {worst:g}, above f16", hint="check the checkpoint")
    return half
