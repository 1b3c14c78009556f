"""The integers of a checkpoint's linears, block of rows by block, digested as they pass by."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from export.decoder.checkpoint import DecoderCheckpoint, Linear
from export.decoder.quantize import quantize_rtn
from kernels.packing import IntWeight, WeightDigest
from runtime.errors import ExportError

BLOCK_BYTES = 8 << 20  # of f32 rows; a few copies of it are what a stream holds, whatever the model's size


class IntegerStream:
    """Gives the integers of linears in the order in which they are asked for, once each.

    Integers of the checkpoint stay as they are; floats are rounded to nearest. ``digest`` is over the single linears,
    so that it depends on no form that they are stored in. advance(count) is told of every weight value that passed.
    """

    def __init__(self, checkpoint: DecoderCheckpoint, group_size: int, advance: Callable[[int], None]) -> None:
        self._checkpoint = checkpoint
        self.group_size, self.advance = group_size, advance
        self.digest = WeightDigest()

    def matrix(self, linears: Sequence[Linear], bits: int = 4) -> Iterator[IntWeight]:
        """The rows of linears of the same input below one another; ``bits`` of a weight are 4 or 8."""
        for linear in linears:
            for weight in self._blocks(linear, bits):
                self.digest.add(linear.name, weight)
                yield weight
                self.advance(weight.q.size)

    def _blocks(self, linear: Linear, bits: int) -> Iterator[IntWeight]:
        stored = self._checkpoint.integers(linear)
        if stored is None:
            for block in self._checkpoint.rows(linear, BLOCK_BYTES):
                yield quantize_rtn(block, self.group_size, linear.name, bits)
            return
        step = max(1, BLOCK_BYTES // (4 * linear.k))
        for at in range(0, linear.n, step):
            rows = slice(at, at + step)
            yield IntWeight(stored.q[rows], stored.zeros[rows], stored.scales[rows], stored.group_size, stored.bits)


def finite(name: str, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The values; ExportError when one is not finite."""
    if not np.isfinite(values).all():
        raise ExportError(f"{name}: has values that are not finite", hint="check the checkpoint")
    return values
