"""Questions that wait for the engine, and those that it writes answers to: which may begin, and how they end."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field

from runtime.captiond.asks import Ask, AskResult, NewestFrame
from runtime.captiond.config.settings import EngineSettings
from runtime.captiond.engine.asked import Asked
from runtime.captiond.engine.life import Death, Life
from runtime.errors import BusyError, DeadlineError, EngineError, UsageError


@dataclass(slots=True)
class EngineStats:
    """Since the daemon started. ``waiting`` and ``running`` are chats; captions have figures of their own."""

    restarts: int = 0
    deaths: Counter[str] = field(default_factory=Counter)
    asks: int = 0
    retries: int = 0
    refused: int = 0
    tokens: int = 0
    waiting: int = 0
    running: int = 0
    captions_waiting: int = 0
    captions_running: int = 0


class Docket:
    """Captions and chats each have places of their own, so that neither waits for the other.

    ``life`` is the engine's present one, None while there is none.
    """

    def __init__(self, settings: EngineSettings, captions: int) -> None:
        self.stats = EngineStats()
        self.life: Life | None = None
        self.settings = settings
        self._captions = max(1, captions)
        self._waiting: dict[str, deque[Asked]] = {"caption": deque(), "chat": deque()}

    def check(self, ask: Ask) -> None:
        """Raises BusyError when too many wait, UsageError for what no engine could answer."""
        if ask.kind == "chat" and self.settings.chats == 0:
            self.stats.refused += 1
            raise UsageError("this engine answers no chats", hint="[engine] chats = 1")
        limit = self.settings.queue if ask.kind == "chat" else 4 * self._captions
        if self._places_left(ask.kind) == 0 and len(self._waiting[ask.kind]) >= limit:
            self.stats.refused += 1
            raise BusyError(
                f"{len(self._waiting[ask.kind])} {ask.kind} requests wait already, the limit is {limit}",
                hint="ask again later, or raise [engine] queue",
            )

    def add(self, asked: Asked) -> None:
        """A question that was checked; it begins at once if it may."""
        self.stats.asks += 1
        self._waiting[asked.ask.kind].append(asked)
        self.dispatch()

    def dispatch(self) -> None:
        """Hand over what may begin."""
        for kind, queue in self._waiting.items():
            while queue and self._places_left(kind) > 0 and self.life is not None:
                asked = queue.popleft()
                asked.tries += 1
                self.life.begin(asked)
        self._count()

    def withdraw(self, asked: Asked) -> None:
        """Whoever asked does not want it any more."""
        queue = self._waiting[asked.ask.kind]
        if asked in queue:
            queue.remove(asked)
            _end_unanswered(asked)
            self._count()
        elif self.life is not None:
            self.life.cancel(asked)

    def overdue(self, now_ns: int) -> None:
        """End those whose time has run out."""
        for asked in self._running():
            if now_ns >= asked.deadline_ns and not asked.overdue and self.life is not None:
                asked.overdue = True
                self.life.cancel(asked)
        for queue in self._waiting.values():
            for asked in [one for one in queue if now_ns >= one.deadline_ns]:
                queue.remove(asked)
                asked.overdue = True
                _end_unanswered(asked)
        self._count()

    def bury(self, death: Death) -> None:
        """The engine died: sort out what was running. It waits again when nobody has seen anything of its answer."""
        running, self.life = self._running(), None
        for asked in sorted(running, key=lambda asked: asked.number, reverse=True):
            about_frame = any(isinstance(picture, NewestFrame) for picture in asked.ask.pictures)
            told = asked.tokens > 0 or (asked.begun and about_frame)
            if asked.cancelled or asked.overdue:
                _end_unanswered(asked)
            elif told or asked.tries > 1:
                asked.fail(EngineError(death.message, hint="ask again: the engine is restarted"))
            else:
                self.stats.retries += 1
                self._waiting[asked.ask.kind].appendleft(asked)
        self._count()

    def close(self) -> None:
        """The engine was stopped for good."""
        for asked in [*self._running(), *self._waiting["caption"], *self._waiting["chat"]]:
            asked.fail(EngineError("the engine was stopped"))
        self.life = None
        for queue in self._waiting.values():
            queue.clear()
        self._count()

    def _running(self) -> list[Asked]:
        return [] if self.life is None else list(self.life.running.values())

    def _places_left(self, kind: str) -> int:
        if self.life is None or not self.life.ready:
            return 0
        places = self._captions if kind == "caption" else self.settings.chats
        return places - sum(asked.ask.kind == kind for asked in self._running())

    def _count(self) -> None:
        running = Counter(asked.ask.kind for asked in self._running())
        self.stats.running, self.stats.captions_running = running["chat"], running["caption"]
        self.stats.waiting, self.stats.captions_waiting = len(self._waiting["chat"]), len(self._waiting["caption"])


def _end_unanswered(asked: Asked) -> None:
    """It was cancelled, or its time ran out, and no answer will come."""
    if asked.overdue and not asked.cancelled:
        asked.fail(DeadlineError("the deadline passed while the request waited", hint="allow a longer deadline_s"))
    else:
        asked.finish(AskResult("", "cancelled", 0, 0, 0, 0, None, None, {}))
