"""Recorded answers: what they forgive and what they do not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.errors import ImageError
from kernels.selftest import golden
from kernels.selftest.running import all_cases

VALUES = np.linspace(-3.0, 5.0, 1000).reshape(10, 100)


def test_the_committed_file_has_the_answers_of_exactly_the_cases_that_there_are() -> None:
    recorded = golden.read_golden()
    cases = list(all_cases())
    assert len({golden.key(case) for case in cases}) == len(cases), "two cases have the same name"
    assert sorted(map(golden.key, cases)) == sorted(recorded), "python -m kernels.selftest --write-golden"
    assert [problem for case in cases if (problem := golden.differences(case, recorded))] == []


@given(st.floats(-1e-13, 1e-13))
def test_rounding_of_another_library_is_forgiven(error: float) -> None:
    assert golden.same(golden.summarise(VALUES), golden.summarise(VALUES * (1 + error)))


def test_what_another_input_would_give_is_not() -> None:
    first = golden.summarise(VALUES)
    changed, swapped = VALUES.copy(), VALUES.copy()
    changed[3, 7] += 1e-4
    swapped[3, [7, 8]] = VALUES[3, [8, 7]]
    special = VALUES.copy()
    special[0, 0] = np.nan
    for other in (changed, swapped, special, VALUES.reshape(100, 10), -VALUES):
        assert not golden.same(first, golden.summarise(other))


def test_integers_are_compared_exactly_and_whatever_their_width() -> None:
    numbers = np.arange(50, dtype=np.int32)
    assert golden.same(golden.summarise(numbers), golden.summarise(numbers.astype(np.int64)))
    assert not golden.same(golden.summarise(numbers), golden.summarise(numbers + (numbers == 49)))
    assert not golden.same(golden.summarise(numbers), golden.summarise(numbers.astype(np.float64)))


def test_infinities_and_nans_are_counted_apart() -> None:
    kinds = [np.array([1.0, value]) for value in (np.nan, np.inf, -np.inf, 0.0)]
    summaries = [golden.summarise(values) for values in kinds]
    assert [golden.same(a, b) for a in summaries for b in summaries] == [a is b for a in kinds for b in kinds]


def test_a_damaged_file_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(golden, "GOLDEN", tmp_path / "golden.json")
    for content in (None, "{", "[1]"):
        if content is not None:
            golden.GOLDEN.write_text(content)
        with pytest.raises(ImageError, match="cannot be read"):
            golden.read_golden()
