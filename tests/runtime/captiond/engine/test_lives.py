"""When the next life of an engine begins."""

from __future__ import annotations

from runtime.captiond.engine.lives import Lives

S = 10**9


def test_first_four_deaths_within_a_minute_cost_no_wait_and_the_fifth_does() -> None:
    lives = Lives()
    assert [lives.died(second * S) for second in (0, 10, 20, 30)] == [0, 0, 0, 0]
    assert not lives.degraded
    assert lives.died(59 * S) == 0.5
    assert lives.degraded


def test_deaths_further_apart_never_count_as_many() -> None:
    lives = Lives()
    assert [lives.died(second * S) for second in range(0, 600, 16)] == [0] * 38
    assert not lives.degraded


def test_pauses_double_up_to_half_a_minute_until_it_stays_up() -> None:
    lives = Lives()
    pauses = [lives.died(0) for _ in range(13)]
    assert pauses == [0, 0, 0, 0, 0.5, 1, 2, 4, 8, 16, 30, 30, 30]
    lives.stays_up()
    assert not lives.degraded
    assert lives.died(0) == 0
    assert lives.died(0, hopeless=True) == 0.5
    assert lives.degraded


def test_an_engine_that_says_why_it_cannot_run_is_given_time_at_once() -> None:
    lives = Lives()
    assert lives.died(0, hopeless=True) == 0.5
    assert lives.degraded
    assert lives.died(40 * S, hopeless=True) == 1
