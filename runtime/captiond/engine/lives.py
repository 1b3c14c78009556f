"""How often an engine may die before it is given time: pure arithmetic, no clock inside."""

from __future__ import annotations

from collections import deque

from runtime.captiond.clock import NS_PER_S

DEATHS = 5
WINDOW_S = 60.0
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
STAYS_UP_S = 10.0


class Lives:
    """Remembers deaths. The fifth within a minute makes it ``degraded``: each further life begins after a pause.

    The pause doubles from 0.5 s to 30 s. A life of ten seconds ends it all.
    """

    def __init__(self) -> None:
        self.degraded = False
        self._deaths: deque[int] = deque(maxlen=DEATHS)
        self._pause_s = FIRST_PAUSE_S

    def died(self, now_ns: int, *, hopeless: bool = False) -> float:
        """Seconds to wait before the next life. ``hopeless``: it said itself why it cannot run."""
        self._deaths.append(now_ns)
        many = len(self._deaths) == DEATHS and now_ns - self._deaths[0] <= WINDOW_S * NS_PER_S
        self.degraded = self.degraded or many or hopeless
        if not self.degraded:
            return 0.0
        pause_s, self._pause_s = self._pause_s, min(2 * self._pause_s, LONGEST_PAUSE_S)
        return pause_s

    def stays_up(self) -> None:
        """It has run for `STAYS_UP_S`: what was before does not count any more."""
        self.degraded = False
        self._deaths.clear()
        self._pause_s = FIRST_PAUSE_S
