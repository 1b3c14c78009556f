"""Counts what happens. Recording costs a few dictionary look-ups; names, help and units are in `exposition`.

Labels come from the configuration, from this program's own words and its list of routes: never from the network.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence

from runtime import errors
from runtime.captiond.clock import NS_PER_S
from runtime.captiond.events import (
    CaptionDelta,
    CaptionFailed,
    CaptionFinished,
    CaptionStarted,
    ChatFinished,
    Event,
    Notice,
    RuleChanged,
)

Labels = tuple[str, ...]
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
MS_PER_S = 1000.0
MAX_SERIES = 1000
STAGES = ("capture", "layout", "preprocess", "vision", "prompt", "fusion", "prefill", "decode", "sample", "detokenize")
_FINISH_REASONS = frozenset({"stop", "length", "cancelled", "deadline"})
_ERRORS = frozenset(name for name, value in vars(errors).items() if isinstance(value, type))


class Tally:
    """Sums by labels; further labels than `MAX_SERIES` are not taken, whatever goes wrong elsewhere."""

    def __init__(self) -> None:
        self._values: dict[Labels, float] = {}

    def add(self, labels: Labels = (), amount: float = 1.0) -> None:
        """Add ``amount``."""
        if labels in self._values or len(self._values) < MAX_SERIES:
            self._values[labels] = self._values.get(labels, 0.0) + amount

    def items(self) -> Iterator[tuple[Labels, float]]:
        """Labels and sums."""
        return iter(list(self._values.items()))

    def __getitem__(self, labels: Labels) -> float:
        return self._values.get(labels, 0.0)


class Distribution:
    """A histogram by labels: ``bounds`` are upper ends of its buckets, in its unit."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self._values: dict[Labels, tuple[list[int], float]] = {}

    def observe(self, value: float, labels: Labels = ()) -> None:
        """Count ``value``."""
        if labels not in self._values and len(self._values) >= MAX_SERIES:
            return
        counts, total = self._values.get(labels) or ([0] * (len(self.bounds) + 1), 0.0)
        counts[bisect.bisect_left(self.bounds, value)] += 1
        self._values[labels] = (counts, total + value)

    def items(self) -> Iterator[tuple[Labels, list[tuple[str, int]], float]]:
        """Labels, cumulative buckets ("le", count) and the sum."""
        for labels, (counts, total) in list(self._values.items()):
            running, buckets = 0, []
            for bound, count in zip((*map(str, self.bounds), "+Inf"), counts, strict=True):
                running += count
                buckets.append((bound, running))
            yield labels, buckets, total


class Metrics:
    """What was counted since the daemon started. `event` is a tap of the bus; the HTTP server counts its own."""

    def __init__(self) -> None:
        self.captions, self.caption_failures, self.caption_tokens = Tally(), Tally(), Tally()
        self.captions_started, self.chats, self.chat_tokens = Tally(), Tally(), Tally()
        self.chat_prompt_tokens, self.frames_passed, self.rule_changes, self.notices = (
            Tally(),
            Tally(),
            Tally(),
            Tally(),
        )
        self.first_token_s, self.between_tokens_s = Distribution(SECONDS), Distribution(TOKEN_SECONDS)
        self.frame_age_s, self.caption_age_s = Distribution(SECONDS), Distribution(SECONDS)
        self.stage_s = Tally()
        self.http_requests, self.http_refusals, self.connections_closed = Tally(), Tally(), Tally()
        self.http_s, self.events_sent, self.events_missed = Distribution(SECONDS), Tally(), Tally()
        self.rules_active: dict[Labels, bool] = {}
        self.tokens_per_s: dict[str, float] = {}
        self._last_delta: dict[str, tuple[int, int]] = {}

    def event(self, event: Event) -> None:
        """Count an event."""
        if isinstance(event, CaptionDelta):
            self._delta(event)
        elif isinstance(event, CaptionStarted):
            self.captions_started.add((event.frame.source,))
        elif isinstance(event, CaptionFinished):
            self._caption(event)
        elif isinstance(event, CaptionFailed):
            self.caption_failures.add((event.source, event.error if event.error in _ERRORS else "other"))
        elif isinstance(event, ChatFinished):
            self._chat(event)
        elif isinstance(event, RuleChanged):
            self.rule_changes.add((event.source, event.rule))
            self.rules_active[(event.source, event.rule)] = event.active
        elif isinstance(event, Notice):
            self.notices.add((event.level,))

    def _delta(self, event: CaptionDelta) -> None:
        caption, then_ns = self._last_delta.get(event.source, (-1, 0))
        if caption == event.caption:
            self.between_tokens_s.observe((event.t_ns - then_ns) / NS_PER_S, ("caption",))
        self._last_delta[event.source] = (event.caption, event.t_ns)

    def _caption(self, event: CaptionFinished) -> None:
        source = event.frame.source
        self.captions.add((source, _reason(event.finish_reason)))
        self.caption_tokens.add((source,), event.tokens)
        self.frames_passed.add((source,), event.skipped)
        self.first_token_s.observe(event.ttft_ms / MS_PER_S, ("caption",))
        self.tokens_per_s["caption"] = event.tokens_per_s
        if event.age_first_ms is not None:
            self.frame_age_s.observe(event.age_first_ms / MS_PER_S, (source,))
        if event.age_last_ms is not None:
            self.caption_age_s.observe(event.age_last_ms / MS_PER_S, (source,))
        for name, spent_ms in event.timings_ms.items():
            if name.removesuffix("_ms") in STAGES:
                self.stage_s.add((name.removesuffix("_ms"),), spent_ms / MS_PER_S)

    def _chat(self, event: ChatFinished) -> None:
        self.chats.add((_reason(event.finish_reason),))
        self.chat_tokens.add((), event.tokens)
        self.chat_prompt_tokens.add((), event.prompt_tokens)
        self.first_token_s.observe(event.ttft_ms / MS_PER_S, ("chat",))
        self.tokens_per_s["chat"] = event.tokens_per_s


def _reason(reason: str) -> str:
    return reason if reason in _FINISH_REASONS else "other"
