"""Time as the daemon sees it: CLOCK_MONOTONIC, the wall clock and waiting. Tests pass a clock of their own."""

from __future__ import annotations

import asyncio
import time

NS_PER_S = 1_000_000_000


class Clock:
    """The real time. Everything in the daemon that waits or measures asks the clock that it was given."""

    def now_ns(self) -> int:
        """CLOCK_MONOTONIC in nanoseconds."""
        return time.monotonic_ns()

    def wall_ns(self) -> int:
        """Nanoseconds since 1970."""
        return time.time_ns()

    async def sleep(self, seconds: float) -> None:
        """Let ``seconds`` pass."""
        await asyncio.sleep(seconds)
