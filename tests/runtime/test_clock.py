"""Stages add up, and the first token is remembered."""

from __future__ import annotations

import pytest

from runtime import clock
from runtime.clock import STAGES, StageClock
from runtime.types import Timings


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A clock that is moved by hand: now[0], in milliseconds."""
    time_ms = [1000]
    monkeypatch.setattr(clock.time, "monotonic_ns", lambda: time_ms[0] * 1_000_000)
    return time_ms


def test_stages_add_up_and_the_first_token_counts(now: list[int]) -> None:
    stages = StageClock()
    for name, ms in (("prefill", 30), ("decode", 5), ("sample", 1), ("decode", 15)):
        with stages.stage(name):
            now[0] += ms
        if name != "sample":
            stages.token()
    now[0] += 9
    timings = stages.timings()
    assert (timings.prefill_ms, timings.decode_ms, timings.sample_ms) == (30.0, 20.0, 1.0)
    assert (timings.ttft_ms, timings.total_ms, timings.decode_tokens_per_s) == (30.0, 60.0, 100.0)


def test_a_stage_that_fails_is_timed_too(now: list[int]) -> None:
    stages = StageClock()
    with pytest.raises(ValueError, match="x"), stages.stage("vision"):
        now[0] += 4
        raise ValueError("x")
    assert stages.timings().vision_ms == 4.0


def test_every_stage_has_its_figure() -> None:
    assert {f"{name}_ms" for name in STAGES} <= set(Timings().as_dict())
