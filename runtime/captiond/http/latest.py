"""What was last heard of every source and of the engine, from a tap of the bus: for /api/state and /health."""

from __future__ import annotations

from dataclasses import dataclass, field

from runtime.captiond.events import (
    CaptionDelta,
    CaptionFailed,
    CaptionFinished,
    CaptionStarted,
    ChatFinished,
    Event,
    RuleChanged,
    SourceChanged,
)

MAX_LIVE_CHARS = 16_384


@dataclass(slots=True)
class LiveCaption:
    """A caption being written: its text so far, up to token ``index`` (-1: none)."""

    started: CaptionStarted
    text: str = ""
    index: int = -1


@dataclass(slots=True)
class SourceNews:
    """The last events of one source."""

    changed: SourceChanged | None = None
    caption: CaptionFinished | None = None
    failed: CaptionFailed | None = None
    live: LiveCaption | None = None
    rules: dict[str, bool] = field(default_factory=dict)


class Latest:
    """One `SourceNews` per source that the daemon ever had; `event` is the tap."""

    def __init__(self) -> None:
        self._news: dict[str, SourceNews] = {}
        self.tokens_per_s: float | None = None
        self.ttft_ms: float | None = None

    def of(self, source: str) -> SourceNews:
        """News of a source; empty when nothing happened yet."""
        return self._news.get(source) or SourceNews()

    def source_status(self, source: str) -> str:
        """The last status that was said, "connecting" before any."""
        changed = self.of(source).changed
        return "connecting" if changed is None else changed.status

    def event(self, event: Event) -> None:
        """Remember an event."""
        if isinstance(event, CaptionDelta):
            self._delta(event)
        elif isinstance(event, SourceChanged):
            self._at(event.source).changed = event
        elif isinstance(event, CaptionStarted):
            self._at(event.frame.source).live = LiveCaption(event)
        elif isinstance(event, CaptionFinished):
            news = self._at(event.frame.source)
            news.caption, news.failed, news.live = event, None, None
            self.tokens_per_s, self.ttft_ms = event.tokens_per_s, event.ttft_ms
        elif isinstance(event, CaptionFailed):
            news = self._at(event.source)
            news.failed, news.live = event, None
        elif isinstance(event, RuleChanged):
            self._at(event.source).rules[event.rule] = event.active
        elif isinstance(event, ChatFinished):
            self.tokens_per_s, self.ttft_ms = event.tokens_per_s, event.ttft_ms

    def _delta(self, event: CaptionDelta) -> None:
        live = self._at(event.source).live
        if live is not None and live.started.caption == event.caption and event.index > live.index:
            live.text = (live.text + event.text)[:MAX_LIVE_CHARS]
            live.index = event.index

    def _at(self, source: str) -> SourceNews:
        return self._news.setdefault(source, SourceNews())
