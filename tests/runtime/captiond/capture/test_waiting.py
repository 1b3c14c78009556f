"""Waiting with a limit leaves nothing behind, however it ends."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from runtime.captiond.capture.waiting import within
from tests.runtime.captiond.clocks import ManualClock, settle


def test_a_result_in_time_is_given() -> None:
    async def main() -> None:
        async def work() -> int:
            await asyncio.sleep(0)
            return 7

        assert await within(ManualClock(), 1, work()) == 7
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


def test_an_error_of_the_work_is_raised() -> None:
    async def main() -> None:
        async def work() -> None:
            raise OSError("broken")

        with pytest.raises(OSError, match="broken"):
            await within(ManualClock(), 1, work())

    asyncio.run(main())


@pytest.mark.parametrize("how", ["late", "cancelled"])
def test_work_that_is_late_or_unwanted_is_cancelled(how: str) -> None:
    async def main() -> None:
        clock, ended = ManualClock(), []

        async def work() -> None:
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                ended.append(True)

        task = asyncio.create_task(within(clock, 5, work()))
        await clock.advance(4.9)
        assert not task.done()
        if how == "cancelled":
            task.cancel()
        else:
            await clock.advance(0.2)
        await settle()
        with contextlib.suppress(asyncio.CancelledError), pytest.raises(TimeoutError):
            await task
        assert ended == [True]
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())
