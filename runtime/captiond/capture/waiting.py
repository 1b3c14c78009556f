"""Waiting with a limit, by the daemon's clock, without leaving anything behind."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

from runtime.captiond.clock import Clock

T = TypeVar("T")


async def within(clock: Clock, seconds: float, work: Awaitable[T]) -> T:
    """The result of ``work``; it is cancelled, and TimeoutError raised, when ``seconds`` pass first."""
    task = asyncio.ensure_future(work)
    timer = asyncio.ensure_future(clock.sleep(seconds))
    try:
        await asyncio.wait({task, timer}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise TimeoutError(f"not done within {seconds:g} s")
    finally:
        await end_tasks(task, timer)


async def end_tasks(*tasks: asyncio.Future[Any]) -> None:
    """Cancel what is not done and wait until it is; results and errors of the others stay with whoever asks."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
