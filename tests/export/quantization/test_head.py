"""The LM head's divergence against the formula in float64, written out over the whole vocabulary."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from export.quantization.head import MEAN_KL_LIMIT, Divergence, choose_head_bits, measure_head, rounded
from runtime.errors import ExportError

RNG = np.random.default_rng(3)
HEAD = RNG.normal(0, 0.2, (301, 64)).astype(np.float32)
HIDDEN = RNG.normal(0, 1.5, (40, 64)).astype(np.float32)


def blocks(size: int, head: np.ndarray = HEAD) -> Iterator[np.ndarray]:
    for begin in range(0, len(head), size):
        yield head[begin : begin + size]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def levels(weight: np.ndarray, bits: int, group: int) -> np.ndarray:
    """Round to nearest with a range that contains 0 and scales in f16, from its definition."""
    top = 2**bits - 1
    out = np.empty_like(weight, np.float64)
    for row, values in enumerate(weight.astype(np.float64)):
        for at in range(0, len(values), group):
            part = values[at : at + group]
            scale = float(np.float16((max(part.max(), 0) - min(part.min(), 0)) / top))
            zero = np.clip(np.rint(-min(part.min(), 0) / scale), 0, top)
            out[row, at : at + group] = (np.clip(np.rint(part / scale) + zero, 0, top) - zero) * scale
    return out


def expected(bits: int) -> tuple[float, float, float]:
    full = log_softmax(HIDDEN.astype(np.float64) @ HEAD.T.astype(np.float64))
    head = HEAD.astype(np.float16).astype(np.float64) if bits == 16 else levels(HEAD, bits, 32)
    other = log_softmax(HIDDEN.astype(np.float64) @ head.T)
    kl = (np.exp(full) * (full - other)).sum(axis=1)
    return kl.mean(), np.quantile(kl, 0.99), (full.argmax(1) == other.argmax(1)).mean()


@pytest.mark.parametrize("size", [301, 37, 1])
def test_divergence_is_the_formulas_however_the_vocabulary_is_cut(size: int) -> None:
    measured = measure_head(HIDDEN, lambda: blocks(size), 32)
    assert [item.bits for item in measured] == [4, 8, 16]
    for item in measured:
        mean, p99, agreement = expected(item.bits)
        # full and candidate logits carry f32 rounding, whose effect on the divergence is quadratic but for its noise
        assert item.mean_kl == pytest.approx(mean, rel=2e-3, abs=1e-8)
        assert item.p99_kl == pytest.approx(p99, rel=2e-3, abs=1e-7)
        assert item.top1_agreement == agreement
    assert measured[0].mean_kl > 100 * measured[1].mean_kl > 0


def test_a_head_that_is_not_changed_diverges_by_nothing() -> None:
    halves = HEAD.astype(np.float16).astype(np.float32)
    measured = measure_head(HIDDEN, lambda: blocks(64, halves), 32)
    assert measured[2] == Divergence(16, 0.0, 0.0, 1.0)


def test_very_large_logits_do_not_overflow() -> None:
    measured = measure_head(HIDDEN * 2000, lambda: blocks(64), 32)
    assert all(np.isfinite([item.mean_kl, item.p99_kl]).all() for item in measured)


def test_progress_counts_rows() -> None:
    counted: list[int] = []
    measure_head(HIDDEN[:2], lambda: blocks(100), 32, counted.append)
    assert counted == [100, 100, 100, 1]


@pytest.mark.parametrize(
    ("four", "eight", "bits"), [(0.5, 0.5, 4), (1.0, 0.1, 4), (1.01, 0.1, 8), (3.0, 1.01, 16), (1e9, 1e9, 16)]
)
def test_the_fewest_bits_within_the_limit_are_taken(four: float, eight: float, bits: int) -> None:
    measured = [Divergence(count, kl * MEAN_KL_LIMIT, 0.0, 1.0) for count, kl in ((4, four), (8, eight), (16, 1e-9))]
    assert choose_head_bits(measured) == bits


def test_a_head_that_cannot_be_quantised_is_named() -> None:
    broken = HEAD.copy()
    broken[7, 3] = np.nan
    with pytest.raises(ExportError, match="lm_head .*not finite"):
        rounded(broken, 4, 32)
    beyond_f16 = HEAD / np.abs(HEAD).max() * 1e5  # its groups still fit sixteen levels with an f16 scale
    with pytest.raises(ExportError, match="head in 16 bits"):
        measure_head(HIDDEN, lambda: iter([beyond_f16]), 64)
