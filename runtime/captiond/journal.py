"""What happens to sources and engine, in the log: few lines, whatever a camera does for how long.

    bus.tap(Journal(clock).note)

Captions are no matter of the log, their failures are. Notices are logged by those who publish them.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from runtime.captiond.clock import NS_PER_S, Clock
from runtime.captiond.events import CaptionFailed, CaptionFinished, EngineChanged, Event, SourceChanged

_log = logging.getLogger(__name__)
BURST = 8
"""Lines about one thing that may follow each other; then one comes every `REST_S`."""
REST_S = 300.0
_CLOSED = "ClosedError"


class Journal:
    """An observer of the bus. Each source, the engine, and each prompt have an allowance of lines of their own."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._allowances: dict[str, _Allowance] = {}
        self._failures: dict[tuple[str, str], str] = {}

    def note(self, event: Event) -> None:
        """Log what whoever runs the daemon should find there later."""
        if isinstance(event, SourceChanged):
            self._source(event)
        elif isinstance(event, EngineChanged):
            level = logging.INFO if event.status in ("loading", "ready", "stopped") else logging.WARNING
            self._say("engine", level, f"engine {event.status}: {event.message}")
        elif isinstance(event, CaptionFinished):
            self._failures.pop((event.frame.source, event.prompt_id), None)
        elif isinstance(event, CaptionFailed) and event.error != _CLOSED:
            self._failed(event)

    def _source(self, event: SourceChanged) -> None:
        name = f"source {event.source}"
        if event.status == "no_signal":
            self._say(name, logging.WARNING, f"{name}: no signal ({event.cause}): {event.message}")
        elif event.status != "connecting":
            self._say(name, logging.INFO, f"{name}: {event.status}")

    def _failed(self, event: CaptionFailed) -> None:
        """The same failure of a prompt is told once, until a caption succeeds."""
        key = (event.source, event.prompt_id)
        if self._failures.get(key) != event.message:
            self._failures[key] = event.message
            name = f"source {event.source}, prompt {event.prompt_id}"
            self._say(name, logging.WARNING, f"{name}: {event.error}: {event.message}")

    def _say(self, about: str, level: int, text: str) -> None:
        allowance = self._allowances.setdefault(about, _Allowance(float(BURST), self._clock.now_ns()))
        left = allowance.take(self._clock.now_ns())
        if left is not None:
            missed = f" ({allowance.missed} earlier changes were not logged)" if allowance.missed else ""
            rest = f" (from now on one line every {REST_S:g} s)" if left < 1 and not missed else ""
            allowance.missed = 0
            _log.log(level, "%s%s%s", text, missed, rest)


@dataclass(slots=True)
class _Allowance:
    """Lines that may be written now, at ``since_ns``; ``missed``: those that were not, since the last that was."""

    lines: float
    since_ns: int
    missed: int = 0

    def take(self, now_ns: int) -> float | None:
        """Take one line; what is left then, None when there was none."""
        self.lines = min(float(BURST), self.lines + (now_ns - self.since_ns) / NS_PER_S / REST_S)
        self.since_ns = now_ns
        if self.lines < 1:
            self.missed += 1
            return None
        self.lines -= 1
        return self.lines
