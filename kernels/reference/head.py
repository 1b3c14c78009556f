"""The LM head in float64, on exactly dequantised weights, and how far f32 may be from it."""

from __future__ import annotations

import numpy as np

from kernels.kernel import F64
from kernels.packing.t16 import TILE_ROWS, tiles_of
from kernels.reference.gemv import ULP, Values, accumulation, gemv

HEAD = np.dtype([("max", "<f8"), ("index", "<i4"), ("sum", "<f8")])
EXP_ERROR = 4 * ULP  # expf within 2 ulp
TREE_STEPS = 4


def head_logits(x: Values, w: F64) -> F64:
    """x [M, K] times w [V, K]: f64 [M, V]."""
    return gemv(x, w)


def head_argmax(x: Values, w: F64) -> np.ndarray:
    """Per tile of 16 ids and token: largest logit, its lowest id, sum of exp(logit - max); HEAD [tiles, M].

    The id is -1, and max and sum are 0, where a logit is NaN or +inf. All -inf: the tile's first id, and sum 0.
    """
    logits = head_logits(x, w)
    tokens, vocabulary = logits.shape
    padded = np.full((tokens, tiles_of(vocabulary) * TILE_ROWS), -np.inf)
    padded[:, :vocabulary] = logits
    tiles = padded.reshape(tokens, -1, TILE_ROWS).transpose(1, 0, 2)
    result = np.zeros(tiles.shape[:2], HEAD)
    bad = (np.isnan(tiles) | (tiles == np.inf)).any(axis=2)
    largest = np.where(bad, 0.0, tiles.max(axis=2))
    first = np.arange(tiles.shape[0])[:, None] * TILE_ROWS
    result["max"] = largest
    result["index"] = np.where(bad, -1, first + np.nan_to_num(tiles, nan=0.0).argmax(axis=2))
    finite = np.isfinite(largest) & ~bad
    shifted = np.where(finite[..., None], tiles, -np.inf) - np.where(finite, largest, 0.0)[..., None]
    result["sum"] = np.exp(shifted).sum(axis=2)
    return result


def logits_bound(x: Values, w: F64, group_size: int) -> F64:
    """For :func:`head_logits`: that of the sums alone, they are f32."""
    return accumulation(x, w, group_size)


def argmax_bounds(x: Values, w: F64, group_size: int) -> tuple[F64, F64]:
    """For max and sum of :func:`head_argmax`, f64 [tiles, M], for finite logits.

    Max: the largest error of the tile's logits. A term of the sum is off by twice that, the subtraction, expf and four
    additions, all relative.
    """
    error = logits_bound(x, w, group_size)
    tokens, vocabulary = error.shape
    padded = np.zeros((tokens, tiles_of(vocabulary) * TILE_ROWS))
    padded[:, :vocabulary] = error
    largest = padded.reshape(tokens, -1, TILE_ROWS).transpose(1, 0, 2).max(axis=2)
    answer = head_argmax(x, w)
    spread = np.abs(head_logits(x, w)).max() * 2
    relative = np.expm1(2 * largest + 2 * spread * ULP) + EXP_ERROR + TREE_STEPS * ULP
    return largest, answer["sum"] * relative
