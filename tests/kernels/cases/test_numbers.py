"""Inputs are the same everywhere: outputs of splitmix64 as its authors publish them, and their ranges."""

from __future__ import annotations

import numpy as np
import pytest

from kernels.cases.numbers import integers, uniform, words


def splitmix64(seed: int, count: int) -> list[int]:
    """The published generator, in Python's integers."""
    state, found = seed, []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        z = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
        found.append(z ^ z >> 31)
    return found


def test_words_are_the_published_ones() -> None:
    # https://rosettacode.org/wiki/Pseudo-random_numbers/Splitmix64
    assert words(1234567, 5).tolist() == [
        6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821,
    ]  # fmt: skip


@pytest.mark.parametrize("seed", [0, 7, 2**64 - 1, -3])
def test_words_follow_the_recurrence(seed: int) -> None:
    assert words(seed, 50).tolist() == splitmix64(seed % 2**64, 50)


def test_integers_fill_their_range() -> None:
    values = integers(3, (40, 50), -8, 8)
    assert values.shape == (40, 50) and values.dtype == np.int64
    assert sorted(set(values.ravel().tolist())) == list(range(-8, 8))
    assert integers(3, (4,), 0, 2**32).tolist() == [word % 2**32 for word in splitmix64(3, 4)]


@pytest.mark.parametrize(("low", "high"), [(0, 0), (5, 4), (0, 2**32 + 1)])
def test_impossible_range_is_refused(low: int, high: int) -> None:
    with pytest.raises(ValueError, match=f"{low} to below {high}"):
        integers(0, (1,), low, high)


def test_uniform_is_spread_over_its_range() -> None:
    values = uniform(5, (10000,), -2.0, 6.0)
    assert values.min() >= -2.0 and values.max() < 6.0
    counts, _ = np.histogram(values, bins=8, range=(-2.0, 6.0))
    assert counts.min() > 1100
    first = splitmix64(5, 1)[0]
    assert values[0] == -2.0 + (first >> 11) * 2.0**-53 * 8.0


def test_seeds_give_different_numbers() -> None:
    assert not set(words(1, 100).tolist()) & set(words(2**40, 100).tolist())
