"""How many bits the LM head needs: next-token distributions of candidates against the full head. Torch-free.

The head is read in blocks of rows; log-sum-exp and Kullback-Leibler divergence are summed over the blocks, so that
logits of the whole vocabulary are never in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from export.decoder.safetensors_file import F32
from kernels.packing import quantize_nearest
from runtime.errors import ExportError

F64 = npt.NDArray[np.float64]

# Mean divergence in nats up to which a head is taken: 0.01 raises the perplexity of the model's own text by 1 %.
MEAN_KL_LIMIT = 0.01
MAX_POSITIONS = 512
CANDIDATES = (4, 8, 16)
BLOCK_BYTES = 32 << 20


@dataclass(frozen=True, slots=True)
class Divergence:
    """A candidate against the full head over all positions: KL(full ‖ candidate) in nats, and equal first choices."""

    bits: int
    mean_kl: float
    p99_kl: float
    top1_agreement: float


def measure_head(
    hidden: F32, rows: Callable[[], Iterator[F32]], group_size: int, progress: Callable[[int], None] | None = None
) -> list[Divergence]:
    """The divergence of the head in 4, 8 and 16 bits on final hidden states [P, D].

    ``rows`` gives the head's rows in blocks f32 [n, D]. 4 and 8 bits are round to nearest in groups of ``group_size``,
    16 is f16. ``progress`` is told the rows of each block. Raises ExportError when the head cannot be quantised.
    """
    tallies = {bits: _Tally(len(hidden)) for bits in CANDIDATES}
    for block in rows():
        full = _logits(hidden, block)
        for bits, tally in tallies.items():
            tally.add(full, _logits(hidden, rounded(block, bits, group_size)))
        if progress:
            progress(len(block))
    return [tally.divergence(bits) for bits, tally in tallies.items()]


def choose_head_bits(measured: list[Divergence], limit: float = MEAN_KL_LIMIT) -> int:
    """The fewest bits whose mean divergence is at most ``limit``; 16 when none is."""
    good = [item.bits for item in measured if item.mean_kl <= limit]
    return min(good, default=16)


def rounded(block: F32, bits: int, group_size: int) -> F32:
    """Rows as they are after storing them in ``bits``."""
    if bits == 16:
        with np.errstate(over="ignore"):
            half = block.astype(np.float16).astype(np.float32)
        if not np.isfinite(half).all():
            raise ExportError(
                f"lm_head has values up to {float(np.abs(block).max()):g}, the head in 16 bits holds 65504",
                hint="copy or download the checkpoint again",
            )
        return half
    try:
        return quantize_nearest(block, group_size, bits=bits).dequantize()
    except ValueError as problem:
        raise ExportError(f"lm_head {problem}", hint="copy or download the checkpoint again") from problem


def _logits(hidden: F32, rows: F32) -> F64:
    logits: F64 = (hidden @ rows.T).astype(np.float64)
    return logits


class _Tally:
    """Running sums over blocks of the vocabulary, for each position, with the largest logit so far taken out."""

    def __init__(self, positions: int) -> None:
        self._high = np.full((2, positions), -np.inf)  # largest logit of: full head, candidate
        self._mass = np.zeros((2, positions))  # Σ exp(logit − largest)
        self._first = np.zeros((2, positions), np.int64)  # where the largest stands
        self._gap = np.zeros(positions)  # Σ exp(full − largest) · (full − candidate)
        self._rows = 0

    def add(self, full: F64, candidate: F64) -> None:
        """Logits [P, n] of the next n tokens of the vocabulary."""
        for which, logits in enumerate((full, candidate)):
            best = logits.argmax(axis=1)
            largest = np.take_along_axis(logits, best[:, None], axis=1)[:, 0]
            higher = largest > self._high[which]
            self._first[which][higher] = best[higher] + self._rows
            new = np.maximum(largest, self._high[which])
            shrink = np.exp(self._high[which] - new)
            weights = np.exp(logits - new[:, None])
            self._mass[which] = self._mass[which] * shrink + weights.sum(axis=1)
            if which == 0:
                self._gap = self._gap * shrink + (weights * (full - candidate)).sum(axis=1)
            self._high[which] = new
        self._rows += full.shape[1]

    def divergence(self, bits: int) -> Divergence:
        """KL(p ‖ q) = Σ p·(full − candidate) − log Z_p + log Z_q; rounding below zero is cut off."""
        log_z = self._high + np.log(self._mass)
        kl = np.maximum(self._gap / self._mass[0] - log_z[0] + log_z[1], 0.0)
        if not np.isfinite(kl).all():
            raise ExportError(f"the head in {bits} bits gives logits that are not finite")
        agreement = float((self._first[0] == self._first[1]).mean())
        return Divergence(bits, float(kl.mean()), float(np.quantile(kl, 0.99)), agreement)
