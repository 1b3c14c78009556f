"""A source's period is judged by its frames, and its silence by its period."""

from __future__ import annotations

import math
import random

import pytest

from runtime.captiond.capture.cadence import STALL_S, Cadence

S = 1_000_000_000


def after(*seconds: float) -> Cadence:
    """A cadence after frames at these times."""
    cadence = Cadence()
    cadence.begin()
    for second in seconds:
        cadence.note(round(second * S), 1)
    return cadence


@pytest.mark.parametrize(
    ("fps", "silence_s"), [(300, STALL_S), (30, STALL_S), (5, STALL_S), (2.5, 2.0), (1, 5), (0.2, 25), (0.1, 50)]
)
def test_silence_is_two_seconds_or_five_periods(fps: float, silence_s: float) -> None:
    cadence = after(*(number / fps for number in range(10)))
    assert cadence.stall_after_s(10) == pytest.approx(silence_s)
    assert cadence.fps == pytest.approx(fps)


def test_the_promise_leaves_time_for_noticing() -> None:
    assert 1.5 < STALL_S < 1.9


def test_an_unknown_period_gives_the_time_of_opening() -> None:
    assert after(0.0).stall_after_s(10) == 10
    assert after(0, 0.1, 0.2).stall_after_s(10) == 10
    assert after(0, 0.1, 0.2, 0.3).stall_after_s(10) == STALL_S
    assert after(0.0).fps == 0


@pytest.mark.parametrize(
    ("fps", "silence_s"), [(25.0, STALL_S), (0.5, 10.0), (0.0, 7), (-1.0, 7), (math.nan, 7), (1e9, 7)]
)
def test_a_declared_rate_is_believed_within_reason(fps: float, silence_s: float) -> None:
    cadence = Cadence()
    cadence.declare(fps)
    assert cadence.stall_after_s(7) == silence_s


def test_frames_outweigh_what_was_declared() -> None:
    cadence = after(*range(10))
    cadence.declare(25)
    assert cadence.stall_after_s(10) == 5


def test_stray_intervals_do_not_count() -> None:
    rng = random.Random(1)
    times, now = [], 0.0
    for number in range(200):
        now += 3.0 if number % 10 == 0 else rng.uniform(0.03, 0.05)
        times.append(now)
    assert after(*times).period_s == pytest.approx(0.04, rel=0.3)


def test_frames_seen_together_share_their_interval() -> None:
    cadence = Cadence()
    for number in range(10):
        cadence.note(number * S, 4)
    assert cadence.period_s == 0.25
    assert cadence.fps == 4


def test_no_interval_reaches_over_two_attempts_and_a_misjudged_period_is_forgotten() -> None:
    cadence = after(*(number / 10 for number in range(20)))
    cadence.begin()
    cadence.note(1000 * S, 1)
    assert cadence.period_s == pytest.approx(0.1)
    cadence.forget()
    assert cadence.period_s is None
