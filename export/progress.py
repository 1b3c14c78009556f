"""Progress on stderr: a bar on a terminal, plain lines elsewhere, nothing for work under two seconds."""

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
        self._task, self._started, self._shown_at, self._drawn = "", 0.0, 0.0, False

    def say(self, text: str) -> None:
        """A line of its own."""
        self._clear()
        self._write(text + "\n")

    def begin(self, task: str) -> None:
        """Names the task that updates belong to from now on."""
        self.end()
        self._task, self._started, self._shown_at = task, time.monotonic(), 0.0

    def update(self, done: int, total: int) -> None:
        """``done`` of ``total`` in any unit."""
        now = time.monotonic()
        every = _BAR_EVERY_S if self._bar else _LINE_EVERY_S
        if now - self._started < _SILENT_S or (now - self._shown_at < every and done < total):
            return
        self._shown_at = now
        share = min(1.0, done / total) if total else 1.0
        if self._bar:
            filled = round(share * _WIDTH)
            self._write(f"\r{self._task} [{'#' * filled}{'.' * (_WIDTH - filled)}] {share:4.0%}")
            self._drawn = True
        else:
            self._write(f"{self._task}: {share:.0%}\n")

    def end(self) -> None:
        """Ends the task; the bar leaves the terminal."""
        self._clear()
        self._task = ""

    def _clear(self) -> None:
        if self._drawn:
            self._write("\r" + " " * (len(self._task) + _WIDTH + 8) + "\r")
            self._drawn = False

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
