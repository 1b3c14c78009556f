"""Streams linears of a checkpoint through the quantiser into the external data of the graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from export.decoder.checkpoint import DecoderCheckpoint, Linear
from export.decoder.external_data import ExternalData
from export.decoder.quantize import quantize_rtn
from kernels.packing import WeightDigest, pack
from runtime.errors import ExportError

F32 = npt.NDArray[np.float32]

BLOCK_BYTES = 8 << 20  # of f32 rows; a few copies of it are the peak of the export, whatever the model's size


@dataclass(frozen=True, slots=True)
class StoredLinear:
    """One MatMulNBits: the names of its initialisers and its shape; ``bias`` is empty where there is none."""

    weight: str
    scales: str
    zeros: str
    bias: str
    n: int
    k: int


class LinearStore:
    """Quantises, digests and stores linears in the order in which they are asked for.

    Linears that read the same input are stored as one matrix with their rows below one another; the digest is over the
    single ones, so that it does not depend on it.
    """

    def __init__(
        self, checkpoint: DecoderCheckpoint, external: ExternalData, group_size: int, advance: Callable[[int], None]
    ) -> None:
        self._checkpoint, self._external, self._group_size = checkpoint, external, group_size
        self._advance = advance
        self.digest = WeightDigest()

    def store(self, name: str, linears: Sequence[Linear]) -> StoredLinear:
        """Stores one or several linears of the same input as the matrix ``name``."""
        n, k = sum(linear.n for linear in linears), linears[0].k
        scales: list[npt.NDArray[Any]] = []
        zeros: list[npt.NDArray[Any]] = []
        shape = (n, k // self._group_size, self._group_size // 2)
        blocks = self._packed_blocks(linears, scales, zeros)
        weight = self._external.add_blocks(f"{name}.weight", np.dtype(np.uint8), shape, n * k // 2, blocks)
        return StoredLinear(
            weight=weight,
            scales=self._external.add(f"{name}.scales", np.concatenate(scales)),
            zeros=self._external.add(f"{name}.zero_points", np.concatenate(zeros)),
            bias=self._store_bias(name, linears),
            n=n,
            k=k,
        )

    def _packed_blocks(
        self, linears: Sequence[Linear], scales: list[npt.NDArray[Any]], zeros: list[npt.NDArray[Any]]
    ) -> Iterator[npt.NDArray[Any]]:
        for linear in linears:
            for rows in self._checkpoint.rows(linear, BLOCK_BYTES):
                weight = quantize_rtn(rows, self._group_size, linear.name)
                self.digest.add(linear.name, weight)
                tensors = pack(weight, "matmulnbits")
                scales.append(tensors["scales"])
                zeros.append(tensors["zero_points"])
                self._advance(rows.size)
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
