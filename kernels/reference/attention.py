"""Causal attention in float64, whole and in splits, and how far the kernels may be from it.

q [M, HQ, D], keys and values [HKV, T, D] (dequantised), all as the kernel reads them; query token m is at position
pos + m, sees positions 0..pos+m, and query head h reads KV head h // (HQ // HKV). Scores are in base 2.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kernels.kernel import F64

Values = npt.NDArray[np.floating]

ULP = 2.0**-24  # half the distance of two f32 values near 1
# A sum on tensor cores may truncate where fp32 additions round: twice that for every addition.
SUM_ULP = 2.0**-23
EXP2 = 2.0**-22  # ex2.approx: 2 ulp
# Half the distance of neighbours, relative to the value, and half the least distance: of weights and results.
ROUNDING = {"f16": (2.0**-11, 2.0**-25), "bf16": (2.0**-8, 2.0**-134)}
TILE = 64
WARPS = 4


def scores(q: Values, keys: Values, pos: int) -> F64:
    """f64 [M, HQ, T]: log2(e) / sqrt(D) · q·k, -inf for positions that a token does not see."""
    tokens, heads, head_dim = q.shape
    wide = np.repeat(keys.astype(np.float64), heads // keys.shape[0], axis=0)
    s = np.einsum("mhd,htd->mht", q.astype(np.float64), wide) * (np.log2(np.e) / np.sqrt(head_dim))
    unseen = np.arange(keys.shape[1]) > pos + np.arange(tokens)[:, None]
    s[np.broadcast_to(unseen[:, None, :], s.shape)] = -np.inf
    return np.asarray(s)


def attention(q: Values, keys: Values, values: Values, pos: int) -> F64:
    """f64 [M, HQ, D]: softmax(q·k / sqrt(D)) · v."""
    s = scores(q, keys, pos)
    weights = np.exp2(s - s.max(axis=2, keepdims=True))
    wide = np.repeat(values.astype(np.float64), q.shape[1] // values.shape[0], axis=0)
    return np.asarray(np.einsum("mht,htd->mhd", weights / weights.sum(axis=2, keepdims=True), wide))


def split_partials(q: Values, keys: Values, values: Values, pos: int, splits: int, positions: int = TILE) -> F64:
    """f64 [M, HQ, splits, D + 4] as `kernels.launch.attention.partials_shape` says; 0 where values mean nothing."""
    tokens, heads, head_dim = q.shape
    out = np.zeros((tokens, heads, splits, head_dim + 4))
    out[..., head_dim] = -np.inf
    s = scores(q, keys, pos)
    wide = np.repeat(values.astype(np.float64), heads // values.shape[0], axis=0)
    for split in range(min(splits, -(-keys.shape[1] // positions))):
        part = slice(split * positions, (split + 1) * positions)
        largest = s[..., part].max(axis=2)
        seen = np.isfinite(largest)
        weights = np.where(seen[..., None], np.exp2(s[..., part] - np.where(seen, largest, 0.0)[..., None]), 0.0)
        out[..., split, :head_dim] = np.einsum("mht,htd->mhd", weights, wide[:, part])
        out[..., split, head_dim] = largest
        out[..., split, head_dim + 1] = weights.sum(axis=2)
    return out


def means(partials: npt.NDArray[np.floating]) -> tuple[F64, F64]:
    """Mean of the values f64 [M, HQ, splits, D] and log2 of the weight f64 [M, HQ, splits] of each split; 0 and -inf
    where a token sees none of it. What two forms of the same partials have in common: their maxima may differ."""
    wide = partials.astype(np.float64)
    head_dim = wide.shape[3] - 4
    total = wide[..., head_dim + 1]
    seen = total != 0
    safe = np.where(seen, total, 1.0)
    mean = np.where(seen[..., None], wide[..., :head_dim] / safe[..., None], 0.0)
    return mean, np.where(seen, wide[..., head_dim] + np.log2(safe), -np.inf)


def combine(partials: npt.NDArray[np.floating]) -> F64:
    """f64 [M, HQ, D] from partials."""
    mean, weight = means(partials)
    share = np.exp2(weight - weight.max(axis=2, keepdims=True))
    return np.asarray((mean * share[..., None]).sum(axis=2) / share.sum(axis=2)[..., None])


def score_error(q: Values, keys: Values, pos: int) -> F64:
    """f64 [M, HQ, T]: largest error of a score in base 2, 0 where it is not seen.

    D products are exact in fp32 and added in some order; then the constant, the product with it and, for int8, the
    scale are rounded: (D + 3) · SUM_ULP · |q|·|k|, times the constant. The difference to the maximum, twice (in a split
    and between splits), is rounded again: 4 ULP of the largest score.
    """
    magnitude = scores(np.abs(q), np.abs(keys), pos)
    seen = np.isfinite(magnitude)
    magnitude[~seen] = 0.0
    largest = np.abs(np.where(seen, scores(q, keys, pos), 0.0)).max(axis=2, keepdims=True)
    return np.asarray(np.where(seen, magnitude * (q.shape[2] + 3) * SUM_ULP + 4 * ULP * largest, 0.0))


def bounds(q: Values, keys: Values, values: Values, pos: int, dtype: str, *, quantized: bool = False) -> F64:
    """f64 [M, HQ, D]: largest difference between a kernel's answer, rounded to ``dtype``, and `attention`.

    ``quantized``: the cache is int8. `_moved` says what moves an answer before its rounding; then come the division
    (ULP) and the rounding.
    """
    half, least = ROUNDING[dtype]
    s, wide = scores(q, keys, pos), np.repeat(values.astype(np.float64), q.shape[1] // values.shape[0], axis=0)
    moved, _ = _moved(s, score_error(q, keys, pos), wide, dtype, -(-(pos + q.shape[0]) // TILE), quantized)
    return np.asarray(moved + (half + ULP) * (np.abs(attention(q, keys, values, pos)) + moved) + least)


def split_bounds(
    q: Values, keys: Values, values: Values, pos: int, splits: int, dtype: str, *, quantized: bool = False
) -> tuple[F64, F64]:
    """Largest differences for the two results of `means` of a kernel's partials; 0 for splits that are not seen."""
    tokens, heads, head_dim = q.shape
    mean, weight = np.zeros((tokens, heads, splits, head_dim)), np.zeros((tokens, heads, splits))
    s, error = scores(q, keys, pos), score_error(q, keys, pos)
    wide = np.repeat(values.astype(np.float64), heads // values.shape[0], axis=0)
    for split in range(min(splits, -(-keys.shape[1] // TILE))):
        part = slice(split * TILE, (split + 1) * TILE)
        seen = np.asarray(np.isfinite(s[..., part]).any(axis=2))
        safe = np.where(seen[..., None], s[..., part], 0.0)
        moved, relative = _moved(safe, error[..., part], wide[:, part], dtype, 1, quantized)
        mean[:, :, split] = np.where(seen[..., None], moved, 0.0)
        weight[:, :, split] = np.where(seen, relative / np.log(2), 0.0)
    return mean, weight


def combine_bounds(partials: npt.NDArray[np.floating], dtype: str) -> F64:
    """f64 [M, HQ, D]: largest difference between attn_decode_combine's answer and `combine` of the same partials.

    A split's share is off by its exponential and by the rounding of the difference of two maxima; the sums add the
    splits; then the division and the rounding.
    """
    half, least = ROUNDING[dtype]
    mean, weight = means(partials)
    seen = np.isfinite(weight)
    share = np.exp2(weight - weight.max(axis=2, keepdims=True))
    share /= share.sum(axis=2, keepdims=True)
    magnitude = (np.abs(mean) * share[..., None]).sum(axis=2)
    head_dim = mean.shape[3]
    largest = np.where(seen, np.abs(partials[..., head_dim].astype(np.float64)), 0.0).max(axis=2)
    error = EXP2 + np.log(2) * 2 * ULP * largest + 2 * (mean.shape[2] + 2) * ULP
    moved = 2 * error[..., None] * magnitude
    return np.asarray(moved + (half + ULP) * (np.abs(combine(partials)) + moved) + least)


def _moved(s: F64, s_error: F64, wide: F64, dtype: str, tiles: int, quantized: bool) -> tuple[F64, F64]:
    """How far sum w v / sum w [M, HQ, D] may move before it is rounded, and sum w [M, HQ], relative.

    s, s_error [M, HQ, T]: scores and their errors; wide [HQ, T, D]: values. With weights w (sum 1) and answer o,
    weights that are off by a factor 1 + e_t, |e_t| <= e < 1, move the answer by at most e / (1 - e) · sum w |v - o|.
    In e: the score (ln 2 times its error), two exponentials and, in prefill, one more for every tile that follows, and
    the rounding of a weight to the type that the product with V takes; their sum is taken after that rounding. A weight
    too small for f16 is off by half its least distance, of a maximum of 1. The product with V and the sum of weights
    add 64 terms per tile, 4 warps and the tiles. ``quantized``: data times scale of a value is rounded to the type.
    """
    half, least = ROUNDING[dtype]
    weights = np.exp2(s - s.max(axis=2, keepdims=True))
    weights /= weights.sum(axis=2, keepdims=True)
    seen = (s > -np.inf).astype(np.float64)
    error = np.log(2) * s_error.max(axis=2) + (2 + tiles) * (EXP2 + ULP) + half
    error = error / (1 - error)
    terms = 2 * (TILE + WARPS) + 2 * tiles
    distance = np.abs(wide[None] - np.einsum("mht,htd->mhd", weights, wide)[:, :, None, :])
    magnitude = np.einsum("mht,htd->mhd", weights, np.abs(wide))
    moved = np.einsum("mht,mhtd->mhd", weights, distance) * error[..., None]
    moved += least * np.einsum("mht,mhtd->mhd", seen, distance) + terms * SUM_ULP * magnitude
    if quantized:
        moved += half * magnitude + least
    return moved, error + least * seen.sum(axis=2) + terms * SUM_ULP
