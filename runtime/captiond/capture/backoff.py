"""How long to wait before the next attempt at a source: longer each time, never the same for two, for ever."""

from __future__ import annotations

import random

FIRST_S = 0.5
MOST_S = 3.0
MOST_UNSEEN_S = 30.0
_GROWTH = 1.6
_SPREAD = 0.6


class Backoff:
    """Waits of 0.5 s that grow by 1.6: up to 3 s, or up to 30 s for a source that never delivered or says no.

    The two grow apart from each other: a source that was lost often begins to say no with a short wait all the same.
    A wait lies between 0.6 and 1 of what it may be, but is never below 0.5 s, so that many cameras behind one switch
    do not come back in step. It grows slowly: a source that comes back after T seconds waits at most T + 1 s more.
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._tries = {True: 0, False: 0}

    def next_s(self, *, unseen: bool) -> float:
        """Seconds until the next attempt. ``unseen``: it never delivered, or refused by 401, 403 or 404."""
        most = MOST_UNSEEN_S if unseen else MOST_S
        # A power of 40 is beyond every limit; a larger one would overflow after months.
        high = min(most, FIRST_S * _GROWTH ** min(self._tries[unseen], 40) / _SPREAD)
        self._tries[unseen] += 1
        return self._rng.uniform(max(FIRST_S, _SPREAD * high), high)

    def seen(self) -> None:
        """It delivers: what was unseen, or said no, is no longer so."""
        self._tries[True] = 0

    def reset(self) -> None:
        """It delivered for a while: the next wait is the shortest."""
        self._tries = {True: 0, False: 0}
