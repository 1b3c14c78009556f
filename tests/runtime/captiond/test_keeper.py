"""Tasks that are started again."""

from __future__ import annotations

import asyncio
import logging

import pytest

from runtime.captiond.events import Event, Notice
from runtime.captiond.keeper import Keeper
from tests.runtime.captiond.clocks import ManualClock, settle


def test_failed_task_begins_again_with_growing_pauses_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        clock = ManualClock()
        events: list[Event] = []
        keeper = Keeper(events.append, clock)
        begun: list[float] = []

        async def work() -> None:
            begun.append((clock.now_ns() - start) / 1e9)
            if len(begun) == 4:
                await clock.sleep(100)  # a good while
            if len(begun) < 6:
                raise RuntimeError(f"number {len(begun)}")
            await clock.sleep(1e6)

        start = clock.now_ns()
        keeper.keep("work", work)
        await clock.advance(200)
        assert begun == [0, 0.5, 1.5, 3.5, 104.0, 105.0]
        assert events[0] == Notice("error", "work", "RuntimeError: number 1")
        assert keeper.failures == 5
        await keeper.close()

    with caplog.at_level(logging.ERROR):
        asyncio.run(run())
    assert "number 1" in caplog.text


def test_task_that_returns_is_over_and_stop_and_close_wait_for_the_end() -> None:
    async def run() -> None:
        keeper = Keeper(lambda event: None, ManualClock())
        ended: list[str] = []

        async def work(name: str) -> None:
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                await asyncio.sleep(0)
                ended.append(name)

        async def once() -> None:
            ended.append("once")

        keeper.keep("once", once)
        keeper.keep("a", lambda: work("a"))
        keeper.keep("b", lambda: work("b"))
        await settle()
        keeper.keep("once", once)  # the name is free again
        await keeper.stop("a")
        assert ended == ["once", "once", "a"]
        await keeper.stop("a")
        await keeper.close()
        assert ended[-1] == "b"

    asyncio.run(run())
