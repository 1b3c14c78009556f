"""What all outputs share: a subscription of their own, counters, and saying once that something is wrong."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import Literal

from runtime.captiond.bus import Bus
from runtime.captiond.clock import Clock
from runtime.captiond.config.settings import SourceSettings
from runtime.captiond.events import Event, Notice

_log = logging.getLogger(__name__)

Level = Literal["info", "warning", "error"]
_LEVELS: Mapping[Level, int] = {"info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
OutputState = Literal["idle", "working", "trouble", "ended"]


class Output(ABC):
    """One consumer of the bus. ``run`` is its task; it may be run again after it failed.

    Its subscription is the only queue, of bounded length: an output that is stuck loses events of its own, counted in
    ``dropped``, and disturbs nobody. ``delivered`` counts events that its peer has taken, ``errors`` failed attempts.
    ``state`` is "trouble" while the peer does not take anything; a `Notice` tells when that begins and when it ends.
    """

    def __init__(self, name: str, bus: Bus, clock: Clock, types: Collection[type] | None, capacity: int = 256) -> None:
        self.name = name
        self.delivered = 0
        self.errors = 0
        self.lost = 0
        self.state: OutputState = "idle"
        self.subscription = bus.subscribe(name, capacity, types)
        self._bus = bus
        self._clock = clock
        self._running: asyncio.Task[None] | None = None

    @property
    def dropped(self) -> int:
        """Events that were not delivered and will not be."""
        return self.lost + self.subscription.dropped

    def watch(self, sources: Sequence[SourceSettings]) -> None:  # noqa: B027 - most outputs need not know
        """These are the sources from now on."""

    async def run(self) -> None:
        """Deliver events until `close`."""
        self._running = asyncio.current_task()
        self.state = "working"
        try:
            await self._work()
        finally:
            self._running = None
            self.state = "ended"

    async def close(self, timeout_s: float) -> None:
        """Deliver what waits, for ``timeout_s`` at most, then stop. Idempotent."""
        self.subscription.close()
        await asyncio.sleep(0)  # a task that was only just made begins now
        task = self._running
        if task is not None and task is not asyncio.current_task():
            timer = asyncio.ensure_future(self._clock.sleep(timeout_s))
            await asyncio.wait({task, timer}, return_when=asyncio.FIRST_COMPLETED)
            timer.cancel()
            if not task.done():
                task.cancel()
                await asyncio.wait({task})
        while self.subscription.take() is not None:
            self.lost += 1

    @abstractmethod
    async def _work(self) -> None:
        """Read the subscription to its end."""

    def _more(self, first: Event, limit: int = 64) -> list[Event]:
        """``first`` and what waits behind it, to be written at once."""
        events = [first]
        while len(events) < limit and (event := self.subscription.take()) is not None:
            events.append(event)
        return events

    def _trouble(self, message: str, level: Level = "warning") -> None:
        """An attempt failed; told once until `_well`."""
        self.errors += 1
        if self.state != "trouble":
            self.state = "trouble"
            self._tell(level, message)

    def _well(self, message: str) -> None:
        """It works; told once after a trouble."""
        if self.state == "trouble":
            self._tell("info", message)
        self.state = "working"

    def _tell(self, level: Level, message: str) -> None:
        _log.log(_LEVELS[level], "%s: %s", self.name, message)
        self._bus.publish(Notice(level, self.name, message))


async def ended(task: asyncio.Task[None]) -> None:
    """Cancel a task and wait until it has ended."""
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
