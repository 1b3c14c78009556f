"""How often a source delivers, and so how long its silence may last before it counts as dead."""

from __future__ import annotations

from collections import deque
from statistics import median

from runtime.captiond.clock import NS_PER_S

STALL_S = 1.75
"""The promise is 2 s; the rest is for noticing it on a busy machine, and for telling."""
STALL_PERIODS = 5
_KEPT = 31
_KNOWN = 3
"""Intervals that make a period known."""
_SLOWEST_FPS, _FASTEST_FPS = 0.01, 1000.0


class Cadence:
    """The period of a source: the median of its last 31 intervals, else what the source declared, else unknown.

    It lasts over reconnects, so that a camera of one frame in five seconds is not taken for dead each time that it
    comes back; `forget` is for when it turned out wrong.
    """

    def __init__(self) -> None:
        self._intervals: deque[tuple[int, int]] = deque(maxlen=_KEPT)
        self._last_ns: int | None = None
        self._declared_s: float | None = None

    def begin(self) -> None:
        """Another attempt: no interval reaches over it."""
        self._last_ns = None

    def forget(self) -> None:
        """Nothing is known any more: the source died by this period after a few frames, so it may be a slower one."""
        self._intervals.clear()
        self._declared_s = None

    def declare(self, fps: float) -> None:
        """What the source says of itself; nonsense is ignored."""
        if _SLOWEST_FPS <= fps <= _FASTEST_FPS:
            self._declared_s = 1 / fps

    def note(self, t_ns: int, frames: int) -> None:
        """``frames`` more have come, the last of them at ``t_ns``."""
        if self._last_ns is not None:
            self._intervals.append((t_ns - self._last_ns, frames))
        self._last_ns = t_ns

    @property
    def period_s(self) -> float | None:
        """Seconds from frame to frame; None while unknown."""
        if len(self._intervals) < _KNOWN:
            return self._declared_s
        return median(ns / frames for ns, frames in self._intervals) / NS_PER_S

    @property
    def fps(self) -> float:
        """Frames per second over the last intervals; 0 when there are none."""
        passed_ns = sum(ns for ns, _ in self._intervals)
        return sum(frames for _, frames in self._intervals) * NS_PER_S / passed_ns if passed_ns else 0.0

    def stall_after_s(self, unknown_s: float) -> float:
        """Seconds without a frame after which the source is dead: 2 s or 5 periods, and less by what noticing takes.

        ``unknown_s``: how long to wait while the period is unknown.
        """
        period_s = self.period_s
        return max(STALL_S, unknown_s if period_s is None else STALL_PERIODS * period_s)
