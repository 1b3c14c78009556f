"""Progress on stderr: a bar on a terminal, plain lines elsewhere, nothing for work under two seconds.

Both tell the time that is left once some of the work was seen to be done.
"""

from __future__ import annotations

import sys
import time
from typing import TextIO

_SILENT_S, _BAR_EVERY_S, _LINE_EVERY_S = 2.0, 0.1, 5.0
_WIDTH = 30


class Progress:
    """One task after the other: ``begin``, any number of ``update``, ``end``."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._bar = self._stream.isatty()
        self._task, self._started, self._shown_at, self._drawn = "", 0.0, 0.0, 0
        self._first: tuple[int, float] | None = None  # what was done at the first update, and when

    def say(self, text: str) -> None:
        """A line of its own."""
        self._clear()
        self._write(text + "\n")

    def begin(self, task: str) -> None:
        """Names the task that updates belong to from now on."""
        self.end()
        self._task, self._started, self._shown_at, self._first = task, time.monotonic(), 0.0, None

    def update(self, done: int, total: int) -> None:
        """``done`` of ``total`` in any unit; work that was done before the first update does not count as speed."""
        now = time.monotonic()
        first, since = self._first = self._first or (done, now)
        every = _BAR_EVERY_S if self._bar else _LINE_EVERY_S
        if now - self._started < _SILENT_S or (now - self._shown_at < every and done < total):
            return
        self._shown_at = now
        share = min(1.0, done / total) if total else 1.0
        left = ""
        if first < done < total:
            left = f", {_duration((now - since) / (done - first) * (total - done))} left"
        if self._bar:
            filled = round(share * _WIDTH)
            text = f"{self._task} [{'#' * filled}{'.' * (_WIDTH - filled)}] {share:4.0%}{left}"
            self._write("\r" + text.ljust(self._drawn))
            self._drawn = len(text)
        else:
            self._write(f"{self._task}: {share:.0%}{left}\n")

    def end(self) -> None:
        """Ends the task; the bar leaves the terminal."""
        self._clear()
        self._task = ""

    def _clear(self) -> None:
        if self._drawn:
            self._write("\r" + " " * self._drawn + "\r")
            self._drawn = 0

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


def _duration(seconds: float) -> str:
    """As people say it: "40 s", "12 min", "3 h 05 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
