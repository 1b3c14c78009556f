"""Choosing a token, in float64 and with a sort where the kernel has neither."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kernels.kernel import F64

F32 = npt.NDArray[np.float32]
WORD = 2**64
PHILOX_ROUNDS = 10
MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
WEYL = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)


@dataclass(frozen=True, slots=True)
class Draw:
    """A choice; ``token`` -1 and NaN for logits that no probability follows from.

    margin: how far, as a part of the whole, the random number or the edge of a filter lies from the place where the
    choice would be another; compare with `margin_bound`.
    """

    token: int
    logprob: float
    margin: float = math.inf


def margin_bound(vocab: int) -> float:
    """Largest shift of a boundary, as a part of the whole, between the kernel's probabilities and exact ones.

    A token's weight is rounded to steps of 2^-44 of the best one's (half a step), and below e^-16 comes from fp32's
    exponential (2 ulp, 2^-22 of at most 2^-23 = 2^-45) and its product and sum (another 2^-46 at most): together under
    2^-43.7 a token. A boundary is a partial sum against a part of the whole sum, so twice that in the worst case,
    and the whole is at least the best token's weight.
    """
    return float(vocab * 2.0**-42.7 + 2.0**-50)


def sample_greedy(logits: F32) -> list[Draw]:
    """The best token of each row of logits f32 [M, V], of equal ones the lowest id."""
    return [_best(row) for row in logits]


def sample_filtered(
    logits: F32,
    seen: npt.NDArray[np.bool_],
    step: int,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    seed: int = 0,
) -> Draw:
    """Filter and draw from logits f32 [V]; scores are f32 as transformers has them, everything behind is float64."""
    best = _best(logits)
    if best.token < 0:
        return best
    factor = np.float32(repetition_penalty)
    scores = np.where(seen, np.where(logits < 0, logits * factor, logits / factor), logits).astype(np.float32)
    if temperature == 0.0:
        return Draw(_best(scores).token, _logprob(logits, _best(scores).token))
    scores = (scores - scores.max()) / np.float32(temperature)
    if 0 < top_k < len(scores):
        scores = np.where(scores < np.sort(scores)[-top_k], np.float32(-np.inf), scores)
    scores, margin = _nucleus(scores, top_p)
    if min_p > 0.0:
        scores = np.where(scores < np.float32(math.log(min_p)), np.float32(-np.inf), scores)
    cumulative = np.cumsum(np.exp(scores.astype(np.float64)))
    parts = cumulative / cumulative[-1]
    uniform = philox_uniform(seed, step)
    token = int(np.searchsorted(parts, uniform, side="right"))
    inner = parts[parts < 1.0]
    distance = float(np.abs(inner - uniform).min()) if inner.size else math.inf
    return Draw(token, _logprob(logits, token), min(margin, distance))


def philox_uniform(seed: int, step: int) -> float:
    """The first number in [0, 1) of Philox4x64-10 under key ``seed``, counter ``step`` + 1, in whole numbers."""
    counter, key = [(step + 1) % WORD, 0, 0, 0], [seed % WORD, 0]
    for _ in range(PHILOX_ROUNDS):
        first, second = MULTIPLIERS[0] * counter[0], MULTIPLIERS[1] * counter[2]
        counter = [
            second // WORD ^ counter[1] ^ key[0],
            second % WORD,
            first // WORD ^ counter[3] ^ key[1],
            first % WORD,
        ]
        key = [(key[0] + WEYL[0]) % WORD, (key[1] + WEYL[1]) % WORD]
    return float(counter[0] >> 11) * 2.0**-53


def _best(row: F32) -> Draw:
    if bool(np.isnan(row).any()) or not math.isfinite(float(row.max())):
        return Draw(-1, math.nan)
    token = int(np.flatnonzero(row == row.max())[0])
    return Draw(token, _logprob(row, token))


def _logprob(row: F32, token: int) -> float:
    wide: F64 = row.astype(np.float64)
    return float(wide[token] - wide.max() - np.log(np.exp(wide - wide.max()).sum()))


def _nucleus(scores: F32, top_p: float) -> tuple[F32, float]:
    """Tokens before which less than top_p of the mass lies, by falling score and rising id; and the edge's margin."""
    if top_p >= 1.0:
        return scores, math.inf
    order = np.lexsort((np.arange(len(scores)), -scores))
    weights = np.exp(scores[order].astype(np.float64))
    before = (np.cumsum(weights) - weights) / weights.sum()
    kept = np.full_like(scores, -np.inf)
    kept[order[before < top_p]] = scores[order[before < top_p]]
    return kept, float(np.abs(before - top_p).min())


def logprob_bound(logprob: F64) -> F64:
    """Largest difference of the logarithms of probabilities.

    An exponential is within 2 ulp of f32 (2^-22), and its argument rounded by 2^-24 of itself. Weighted by the tokens'
    parts of the sum the arguments are at most log V (the entropy less the sum's logarithm): 13.2 for 2^19 tokens. So
    the sum is right to 17.2 times 2^-24, below 2^-19.8; twice that where the LM head summed tiles in f32 before. The
    subtraction and the logarithm are each rounded by half an ulp of a value of at most the result and 13.2.
    """
    bound: F64 = 2.0**-18.8 + (np.abs(np.nan_to_num(logprob)) + 13.2) * 2.0**-23
    return bound
