"""Tells systemd that the daemon works, from the progress of its captions and from nothing else.

A caption loop makes progress with each token, and each time that it knows why it waits: no signal, paused, the engine
restarting, nothing due. A loop that hangs stops doing either, the pings end, and systemd restarts the service.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from runtime.captiond.clock import NS_PER_S, Clock
from runtime.captiond.service.notify import Notifier

WINDOW_DEFAULT_S = 90.0


class Watchdog:
    """Pings while every loop has moved within the watchdog's time. ``progress``: the last step of each loop, ns."""

    def __init__(self, notifier: Notifier, progress: Callable[[], Iterable[int]], clock: Clock) -> None:
        self._notifier = notifier
        self._progress = progress
        self._clock = clock
        self._window_s = notifier.watchdog_s or WINDOW_DEFAULT_S

    def margin_s(self) -> float:
        """Seconds until the slowest loop would count as hung; negative once it does."""
        now = self._clock.now_ns()
        oldest = min(self._progress(), default=now)
        return self._window_s - (now - oldest) / NS_PER_S

    async def run(self) -> None:
        """Ping four times per window, until cancelled."""
        while True:
            if self._notifier.watchdog_s is not None and self.margin_s() > 0:
                self._notifier.alive()
            await self._clock.sleep(self._window_s / 4)
