"""The log says what became of sources, engine and prompts, in few lines."""

from __future__ import annotations

import asyncio
import logging

import pytest

from runtime.captiond.events import CaptionFailed, EngineChanged, SourceChanged
from runtime.captiond.journal import BURST, REST_S, Journal
from tests.runtime.captiond.clocks import ManualClock
from tests.runtime.captiond.sample_events import finished

LOST = SourceChanged("door", "no_signal", "refused", "10.0.0.7:554 refuses", 1, 0.5)
LIVE = SourceChanged("door", "live", "", "", 0, None)


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "runtime.captiond.journal")
    return caplog


def test_a_lost_source_and_its_return_are_logged_with_the_cause(log: pytest.LogCaptureFixture) -> None:
    journal = Journal(ManualClock())
    for event in (SourceChanged("door", "connecting", "", "", 0, None), LIVE, LOST, LIVE):
        journal.note(event)
    assert [(record.levelname, record.getMessage()) for record in log.records] == [
        ("INFO", "source door: live"),
        ("WARNING", "source door: no signal (refused): 10.0.0.7:554 refuses"),
        ("INFO", "source door: live"),
    ]


def test_an_engine_that_dies_and_comes_back_is_logged(log: pytest.LogCaptureFixture) -> None:
    journal = Journal(ManualClock())
    journal.note(EngineChanged("restarting", "SIGSEGV", "the engine died of SIGSEGV", 1, None))
    journal.note(EngineChanged("ready", "loaded", "the engine is loaded", 1, 0.5))
    assert [record.levelname for record in log.records] == ["WARNING", "INFO"]
    assert "died of SIGSEGV" in log.records[0].getMessage()


def test_a_camera_that_comes_and_goes_for_a_day_does_not_fill_the_log(log: pytest.LogCaptureFixture) -> None:
    clock = ManualClock()
    journal = Journal(clock)

    async def a_day() -> None:
        for _ in range(24 * 360):
            for event in (LOST, LIVE):
                journal.note(event)
                await clock.advance(5)

    asyncio.run(a_day())
    assert BURST < len(log.records) <= BURST + 24 * 3600 / REST_S + 1
    assert "from now on" in log.records[BURST - 1].getMessage() and "not logged" in log.records[BURST].getMessage()


def test_other_sources_are_logged_while_one_is_noisy(log: pytest.LogCaptureFixture) -> None:
    journal = Journal(ManualClock())
    for _ in range(100):
        journal.note(LOST)
    journal.note(SourceChanged("yard", "no_signal", "401", "wrong password", 1, 0.5))
    assert len(log.records) == BURST + 1 and "yard" in log.records[-1].getMessage()


def test_a_failing_prompt_is_logged_once_until_it_succeeds(log: pytest.LogCaptureFixture) -> None:
    journal = Journal(ManualClock())
    good = finished(6)
    failed = CaptionFailed(7, good.frame.source, good.prompt_id, "InputError", "the prompt has 900 tokens of 512")
    for event in (failed, failed, failed, good, failed):
        journal.note(event)
    assert [record.levelname for record in log.records] == ["WARNING"] * 2
    assert "900 tokens" in log.records[0].getMessage()


def test_captions_that_were_stopped_are_no_failures(log: pytest.LogCaptureFixture) -> None:
    Journal(ManualClock()).note(CaptionFailed(7, "door", "scene", "ClosedError", "stopped"))
    assert not log.records
