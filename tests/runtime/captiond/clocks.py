"""A clock that tests move by hand."""

from __future__ import annotations

import asyncio
import heapq
import itertools

from runtime.captiond.clock import NS_PER_S, Clock


class ManualClock(Clock):
    """Stands still until `advance`; sleepers wake in the order of their time, each before later ones sleep on."""

    def __init__(self, now_ns: int = 1_000 * NS_PER_S) -> None:
        self._now_ns = now_ns
        self._wall_offset_ns = 1_700_000_000 * NS_PER_S
        self._sleepers: list[tuple[int, int, asyncio.Future[None]]] = []
        self._order = itertools.count()

    def now_ns(self) -> int:
        return self._now_ns

    def wall_ns(self) -> int:
        return self._now_ns + self._wall_offset_ns

    async def sleep(self, seconds: float) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        due = self._now_ns + max(0, round(seconds * NS_PER_S))
        heapq.heappush(self._sleepers, (due, next(self._order), future))
        await future

    async def advance(self, seconds: float) -> None:
        """Move the time; whoever slept until then has run, as far as it can, when this returns."""
        end = self._now_ns + round(seconds * NS_PER_S)
        await settle()
        while self._sleepers and self._sleepers[0][0] <= end:
            due, _, future = heapq.heappop(self._sleepers)
            self._now_ns = max(self._now_ns, due)
            if not future.done():
                future.set_result(None)
            await settle()
        self._now_ns = end


async def settle(rounds: int = 20) -> None:
    """Let every task that can run now run until it waits for something else than the event loop itself."""
    for _ in range(rounds):
        await asyncio.sleep(0)
