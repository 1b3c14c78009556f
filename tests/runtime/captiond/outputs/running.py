"""Outputs as the daemon runs them, and waiting for what they do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from runtime.captiond.bus import Bus
from runtime.captiond.events import Notice
from runtime.captiond.outputs.output import Output

_PATIENCE_S = 30.0


@asynccontextmanager
async def running(output: Output, close_s: float = 5.0) -> AsyncIterator[asyncio.Task[None]]:
    """Run an output; close it at the end. A failure of its own fails the test."""
    task = asyncio.ensure_future(output.run())
    try:
        yield task
    finally:
        await output.close(close_s)
        await asyncio.wait({task})
    if not task.cancelled():
        task.result()


async def eventually(true: Callable[[], object], what: str = "the condition") -> None:
    """Wait, letting the loop run, until ``true()``; the test fails after half a minute."""
    end = time.monotonic() + _PATIENCE_S
    while not true():
        assert time.monotonic() < end, f"{what} did not come"
        await asyncio.sleep(0.01)


def notices(bus: Bus) -> list[Notice]:
    """The notices of a bus, as they come."""
    found: list[Notice] = []
    bus.tap(lambda event: found.append(event) if isinstance(event, Notice) else None)
    return found
