"""The reference of the samplers: transformers' filters by definition, on rows small enough to do by hand."""

from __future__ import annotations

import numpy as np
import pytest

from kernels.reference.sample import margin_bound, philox_uniform, sample_filtered, sample_greedy

NOBODY = np.zeros(4, np.bool_)


def drawn(probabilities: list[float], **setting: float) -> set[int]:
    """The tokens of 200 draws."""
    logits = np.log(np.array(probabilities)).astype(np.float32)
    return {sample_filtered(logits, NOBODY, step, **setting).token for step in range(200)}


def test_filters_keep_what_their_definitions_say() -> None:
    row = [0.1, 0.4, 0.2, 0.3]
    assert drawn(row) == {0, 1, 2, 3}
    assert drawn(row, top_k=2) == {1, 3}
    assert drawn(row, top_p=0.69) == {1, 3}
    assert drawn(row, top_p=0.71) == {1, 2, 3}
    assert drawn(row, min_p=0.6) == {1, 3}
    assert drawn(row, top_k=3, top_p=0.44) == {1}  # 0.4 / 0.9 is more than 0.44
    assert drawn(row, temperature=0.0) == {1}


def test_the_penalty_divides_positive_scores_and_multiplies_negative_ones() -> None:
    logits = np.array([2.0, 1.5, -1.0, -1.5], np.float32)
    seen = np.array([True, False, True, False])
    assert sample_filtered(logits, seen, 0, temperature=0.0, repetition_penalty=2.0).token == 1
    assert sample_filtered(logits[2:], seen[2:], 0, temperature=0.0, repetition_penalty=2.0).token == 1


def test_the_draw_is_the_place_of_the_random_number() -> None:
    logits = np.log(np.array([0.25, 0.25, 0.5])).astype(np.float32)
    for step in range(50):
        uniform = philox_uniform(9, step)
        draw = sample_filtered(logits, np.zeros(3, np.bool_), step, seed=9)
        assert draw.token == (0 if uniform < 0.25 else 1 if uniform < 0.5 else 2)
        assert draw.margin == pytest.approx(min(abs(uniform - 0.25), abs(uniform - 0.5)), abs=1e-7)
        assert draw.logprob == pytest.approx(np.log([0.25, 0.25, 0.5][draw.token]), abs=1e-7)


def test_damaged_rows_have_no_choice_and_ties_the_lowest_id() -> None:
    rows = np.array([[1.0, 3.0, 3.0], [np.nan, 0.0, 0.0], [np.inf, 0.0, 0.0], [-np.inf] * 3], np.float32)
    assert [draw.token for draw in sample_greedy(rows)] == [1, -1, -1, -1]
    assert sample_filtered(rows[1], np.zeros(3, np.bool_), 0).token == -1


def test_the_margin_grows_with_the_vocabulary_and_stays_small() -> None:
    assert margin_bound(2) < 1e-12 < margin_bound(152_064) < 1e-7
