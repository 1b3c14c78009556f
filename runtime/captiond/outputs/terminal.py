"""Captions and rules on standard output: lines to read, or JSON lines."""

from __future__ import annotations

import errno
import os
import select
from collections.abc import Mapping, Sequence
from functools import partial

from runtime.captiond.bus import Bus
from runtime.captiond.clock import Clock
from runtime.captiond.config.settings import SourceSettings, TerminalSettings
from runtime.captiond.events import CaptionDelta, CaptionFailed, CaptionFinished, CaptionStarted, Event, RuleChanged
from runtime.captiond.outputs.output import Output
from runtime.captiond.outputs.payload import json_text
from runtime.captiond.outputs.worker import Worker
from runtime.captiond.text import MAX_SHOWN_CHARS, one_line

_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"
_TYPES = (CaptionStarted, CaptionDelta, CaptionFinished, CaptionFailed, RuleChanged)


class Terminal(Output):
    """Writes to ``fd``. On a terminal with one source, a caption appears token by token; colours unless NO_COLOR.

    Writing is left to a thread: a terminal that is stopped or a pipe that nobody reads costs events, not the daemon.
    When nobody can ever read again (EPIPE), the output ends; on a full disk it loses events until there is room.
    """

    def __init__(
        self,
        settings: TerminalSettings,
        bus: Bus,
        clock: Clock,
        sources: Sequence[SourceSettings] = (),
        *,
        fd: int = 1,
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        super().__init__("terminal", bus, clock, _TYPES)
        self._fd = fd
        self._json = settings.style == "json"
        self._tty = os.isatty(fd)
        color = self._tty and not environment.get("NO_COLOR") and environment.get("TERM") != "dumb"
        self._lines = TerminalLines(color=color)
        self._worker = Worker("terminal")
        self.watch(sources)

    def watch(self, sources: Sequence[SourceSettings]) -> None:
        self._lines.live = self._tty and not self._json and len(sources) == 1

    async def _work(self) -> None:
        try:
            async for event in self.subscription:
                events = self._more(event)
                text = "".join(map(self._text, events)).encode("utf-8", "replace")
                try:
                    if text:
                        await self._worker.run(partial(_write_all, self._fd, text))
                except OSError as error:
                    self.lost += _whole(events)
                    self._trouble(f"standard output takes no more: {error.strerror or error}")
                    if error.errno != errno.ENOSPC:
                        self.subscription.close()
                        return
                    continue
                self.delivered += _whole(events)
                if text:
                    self._well("standard output takes captions again")
        finally:
            self._worker.close()

    def _text(self, event: Event) -> str:
        if not self._json:
            return self._lines.text(event)
        return json_text(event) + "\n" if isinstance(event, (CaptionFinished, RuleChanged)) else ""


class TerminalLines:
    """Events as text for people. ``live``: captions are written as they come."""

    def __init__(self, *, color: bool) -> None:
        self.live = False
        self._color = color
        self._caption: int | None = None  # whose line is begun and not ended
        self._shown = ""

    def text(self, event: Event) -> str:
        """What to write for this event."""
        if isinstance(event, CaptionStarted):
            return self._begin(event) if self.live else ""
        if isinstance(event, CaptionDelta):
            return self._piece(event)
        if isinstance(event, CaptionFinished):
            return self._end(event)
        if isinstance(event, CaptionFailed):
            return self._break() if event.caption == self._caption else ""
        if isinstance(event, RuleChanged):
            value = one_line(str(event.value), 200)
            head = self._dim(f"{event.source}  rule {event.rule}")
            return f"{self._break()}{head}  {'ON' if event.active else 'off'}  {self._dim(f'({value})')}\n"
        return ""

    def _begin(self, event: CaptionStarted) -> str:
        before = self._break()
        self._caption, self._shown = event.caption, ""
        return before + self._head(event.frame.source, event.frame.seq)

    def _piece(self, event: CaptionDelta) -> str:
        if event.caption != self._caption or len(self._shown) >= MAX_SHOWN_CHARS:
            return ""
        piece = one_line(event.text)
        self._shown += piece
        return piece

    def _end(self, event: CaptionFinished) -> str:
        text = one_line(event.text)
        tail = f"  {self._dim('(' + ', '.join(_facts(event)) + ')')}\n"
        # Pieces that were lost on the way leave a gap: then the caption is written again, whole.
        whole = event.caption == self._caption and self._shown.strip() == text.strip()
        line = tail if whole else f"{self._break()}{self._head(event.frame.source, event.frame.seq)}{text}{tail}"
        self._caption = None
        return line

    def _break(self) -> str:
        begun = self._caption is not None
        self._caption = None
        return "\n" if begun else ""

    def _head(self, source: str, seq: int) -> str:
        return self._dim(f"{source}  frame {seq:>5}") + "  "

    def _dim(self, text: str) -> str:
        return f"{_DIM}{text}{_PLAIN}" if self._color else text


def _facts(event: CaptionFinished) -> list[str]:
    facts = [] if event.age_first_ms is None else [f"age {event.age_first_ms:.0f} ms"]
    facts += [f"{event.tokens_per_s:.0f} tok/s"] if event.tokens_per_s else []  # one token alone has no speed
    facts += [f"ended by {event.finish_reason}"] if event.finish_reason != "stop" else []
    facts += [f"{event.skipped} skipped"] if event.skipped else []
    return facts


def _whole(events: Sequence[Event]) -> int:
    """Captions and rules among these: pieces of captions are no deliveries."""
    return sum(isinstance(event, (CaptionFinished, RuleChanged)) for event in events)


def _write_all(fd: int, data: bytes) -> None:
    """Write everything, waiting as long as it takes; also where somebody has made ``fd`` non-blocking."""
    with memoryview(data) as view:
        at = 0
        while at < len(view):
            try:
                at += os.write(fd, view[at:])
            except BlockingIOError:
                select.select((), (fd,), ())
