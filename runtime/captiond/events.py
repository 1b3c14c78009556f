"""What happens in the daemon, as values. Every output is made from these; they travel over `runtime.captiond.bus`.

Times named ``t_…_ns`` are CLOCK_MONOTONIC, ``…_unix`` seconds since 1970. Texts are as the model or a peer wrote them:
whoever shows them makes them harmless (`runtime.captiond.text`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import ClassVar, Literal, TypeAlias

SourceStatus = Literal["connecting", "live", "no_signal", "ended", "paused"]
EngineStatus = Literal["loading", "ready", "restarting", "degraded", "stopped"]
CaptureKind = Literal["exposure", "arrival"]


@dataclass(frozen=True, slots=True)
class FrameFacts:
    """Which frame: ``seq`` counts the source's frames from 0, over reconnects too."""

    source: str
    seq: int
    t_capture_ns: int
    capture_unix: float
    kind: CaptureKind
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class CaptionStarted:
    """A frame was taken; its caption is being written. ``caption`` numbers captions since the daemon started."""

    type: ClassVar[str] = "caption_started"
    caption: int
    frame: FrameFacts
    prompt_id: str
    prompt: str


@dataclass(frozen=True, slots=True)
class CaptionDelta:
    """The next piece of a caption: whole characters. ``index``: token number, from 0."""

    type: ClassVar[str] = "caption_delta"
    caption: int
    source: str
    text: str
    index: int
    t_ns: int


@dataclass(frozen=True, slots=True)
class CaptionFinished:
    """A whole caption. Ages are milliseconds from the frame's capture. ``fields``: the parsed answer of a yes/no or
    JSON prompt, None for a text prompt. ``finish_reason``: "stop", "length", "cancelled" or "deadline"."""

    type: ClassVar[str] = "caption"
    caption: int
    frame: FrameFacts
    prompt_id: str
    prompt: str
    text: str
    fields: Mapping[str, object] | None
    finish_reason: str
    model: str
    tokens: int
    age_first_ms: float | None
    age_last_ms: float | None
    ttft_ms: float
    tokens_per_s: float
    skipped: int
    timings_ms: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CaptionFailed:
    """A caption that came to nothing: ``error`` is the error's type, never shown as a caption."""

    type: ClassVar[str] = "caption_failed"
    caption: int
    source: str
    prompt_id: str
    error: str
    message: str


@dataclass(frozen=True, slots=True)
class SourceChanged:
    """A source's state. ``cause`` is one word for machines ("stalled", "refused", "401", …), ``message`` for people."""

    type: ClassVar[str] = "source"
    source: str
    status: SourceStatus
    cause: str
    message: str
    attempt: int
    retry_in_s: float | None


@dataclass(frozen=True, slots=True)
class EngineChanged:
    """The engine's state. ``restarts`` since the daemon started; ``load_s`` of the last load."""

    type: ClassVar[str] = "engine"
    status: EngineStatus
    cause: str
    message: str
    restarts: int
    load_s: float | None


@dataclass(frozen=True, slots=True)
class RuleChanged:
    """A rule became active or inactive. ``value`` is what its field held."""

    type: ClassVar[str] = "rule"
    source: str
    rule: str
    active: bool
    value: object
    caption: int
    frame: FrameFacts


@dataclass(frozen=True, slots=True)
class ChatFinished:
    """A request of the HTTP interface came to its end; nothing of what was said is in it."""

    type: ClassVar[str] = "chat"
    request: str
    finish_reason: str
    prompt_tokens: int
    tokens: int
    ttft_ms: float
    tokens_per_s: float


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that whoever runs the daemon should know: a configuration reloaded or refused, an output in trouble."""

    type: ClassVar[str] = "notice"
    level: Literal["info", "warning", "error"]
    about: str
    message: str


Event: TypeAlias = (
    CaptionStarted
    | CaptionDelta
    | CaptionFinished
    | CaptionFailed
    | SourceChanged
    | EngineChanged
    | RuleChanged
    | ChatFinished
    | Notice
)
EVENT_TYPES = (
    CaptionStarted,
    CaptionDelta,
    CaptionFinished,
    CaptionFailed,
    SourceChanged,
    EngineChanged,
    RuleChanged,
    ChatFinished,
    Notice,
)


def as_json(event: Event) -> dict[str, object]:
    """An event as JSON values: its fields by name, "type" first, a frame's facts as an object."""
    return {"type": event.type, **_values(event)}


def _values(value: object) -> dict[str, object]:
    found: dict[str, object] = {}
    for item in fields(value):  # type: ignore[arg-type]
        content = getattr(value, item.name)
        found[item.name] = _values(content) if isinstance(content, FrameFacts) else content
    return found
