"""Waits grow to their limits, never fall below half a second, differ between sources, and go on for ever."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from runtime.captiond.capture.backoff import FIRST_S, MOST_S, MOST_UNSEEN_S, Backoff


def waits(seed: int, count: int, unseen: bool) -> list[float]:
    backoff = Backoff(random.Random(seed))
    return [backoff.next_s(unseen=unseen) for _ in range(count)]


@given(seed=st.integers(0, 2**32), unseen=st.booleans())
def test_waits_stay_between_half_a_second_and_their_limit(seed: int, unseen: bool) -> None:
    most = MOST_UNSEEN_S if unseen else MOST_S
    found = waits(seed, 40, unseen)
    assert all(FIRST_S <= wait <= most for wait in found)
    assert found[0] < 0.9
    assert all(wait >= 0.6 * most for wait in found[12:]), "at the limit they are spread, and no more"


@given(seed=st.integers(0, 2**32), unseen=st.booleans(), away_s=st.floats(0, 20))
def test_a_source_that_comes_back_waits_little_longer_than_it_was_away(seed: int, unseen: bool, away_s: float) -> None:
    backoff, passed_s = Backoff(random.Random(seed)), 0.0
    while passed_s <= away_s:
        passed_s += backoff.next_s(unseen=unseen)
    assert passed_s - away_s <= away_s + 1


def test_a_seed_makes_the_waits_and_two_sources_differ() -> None:
    assert waits(1, 20, True) == waits(1, 20, True)
    assert len({waits(seed, 20, False)[-1] for seed in range(20)}) == 20


def test_a_good_while_begins_again_and_the_two_limits_are_apart() -> None:
    backoff = Backoff(random.Random(3))
    for _ in range(20):
        backoff.next_s(unseen=False)
    assert backoff.next_s(unseen=True) < 0.9, "it says no for the first time"
    for _ in range(20):
        backoff.next_s(unseen=True)
    backoff.seen()
    assert backoff.next_s(unseen=True) < 0.9
    assert backoff.next_s(unseen=False) > 1.7
    backoff.reset()
    assert backoff.next_s(unseen=False) < 0.9


def test_months_of_waiting_do_not_overflow() -> None:
    assert 18 <= waits(1, 5000, True)[-1] <= MOST_UNSEEN_S
