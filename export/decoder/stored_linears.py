"""Streams linears of a checkpoint through the quantiser into the external data of the graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from export.decoder.checkpoint import DecoderCheckpoint, Linear
from export.decoder.external_data import ExternalData
from export.decoder.quantize import quantize_rtn
from kernels.packing import IntWeight, WeightDigest, pack
from runtime.errors import ExportError

F32 = npt.NDArray[np.float32]

BLOCK_BYTES = 8 << 20  # of f32 rows; a few copies of it are the peak of the export, whatever the model's size


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
    """Digests and stores linears in the order in which they are asked for, in integers.

    Integers of the checkpoint stay as they are; floats are rounded to nearest. Linears that read the same input are
    stored as one matrix with their rows below one another; the digest is over the single ones, so that it does not
    depend on it.
    """

    def __init__(
        self, checkpoint: DecoderCheckpoint, external: ExternalData, group_size: int, advance: Callable[[int], None]
    ) -> None:
        self._checkpoint, self._external, self._group_size = checkpoint, external, group_size
        self._advance = advance
        self.digest = WeightDigest()

    def store(self, name: str, linears: Sequence[Linear], bits: int = 4) -> StoredLinear:
        """Stores one or several linears of the same input as the matrix ``name``; ``bits`` of a weight are 4 or 8."""
        n, k = sum(linear.n for linear in linears), linears[0].k
        scales: list[npt.NDArray[Any]] = []
        zeros: list[npt.NDArray[Any]] = []
        shape = (n, k // self._group_size, self._group_size * bits // 8)
        blocks = chain.from_iterable(self._packed_blocks(linear, bits, scales, zeros) for linear in linears)
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
            self._advance(rows.size)

    def _integers(self, linear: Linear, bits: int) -> Iterator[IntWeight]:
        stored = self._checkpoint.integers(linear)
        if stored is None:
            for block in self._checkpoint.rows(linear, BLOCK_BYTES):
                yield quantize_rtn(block, self._group_size, linear.name, bits)
            return
        step = max(1, BLOCK_BYTES // (4 * linear.k))
        for at in range(0, linear.n, step):
            rows = slice(at, at + step)
            yield IntWeight(stored.q[rows], stored.zeros[rows], stored.scales[rows], stored.group_size, stored.bits)

    def _packed_blocks(
        self, linear: Linear, bits: int, scales: list[npt.NDArray[Any]], zeros: list[npt.NDArray[Any]]
    ) -> Iterator[npt.NDArray[Any]]:
        """One linear's blocks of rows; nothing of it is held when they have been taken."""
        for weight in self._integers(linear, bits):
            self.digest.add(linear.name, weight)
            tensors = pack(weight, "matmulnbits")
            scales.append(tensors["scales"])
            zeros.append(tensors["zero_points"])
            self._advance(weight.q.size)
            yield tensors["B"]

    def _store_bias(self, name: str, linears: Sequence[Linear]) -> str:
        if not linears[0].bias:
            return ""
        bias = np.concatenate([finite(f"{linear.name}.bias", self._checkpoint.bias(linear)) for linear in linears])
        return self._external.add(f"{name}.bias", bias)


def finite(name: str, values: F32) -> F32:
    """The values; ExportError when one is not finite."""
    if not np.isfinite(values).all():
        raise ExportError(f"{name}: has values that are not finite", hint="check the checkpoint")
    return values


def as_f16(name: str, values: F32) -> npt.NDArray[np.float16]:
    """The values rounded to f16, little-endian; ExportError that names one which f16 cannot hold."""
    with np.errstate(over="ignore"):
        half = values.astype("<f2")
    if not np.isfinite(half).all():
        worst = float(values.reshape(-1)[int(np.argmin(np.isfinite(half)))])
        raise ExportError(f"{name} has the value {worst:g}, above f16", hint="check the checkpoint")
    return half
