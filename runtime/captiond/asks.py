"""What the daemon asks of its engine, and what comes back: plain values that cross a process boundary as JSON.

A question's pictures are either the newest frame of a source, taken by the engine when the question begins, or images
that `runtime.captiond.pictures` has decoded into shared memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from runtime.captiond.events import FrameFacts

Role = Literal["system", "user", "assistant"]
FinishReason = Literal["stop", "length", "cancelled", "deadline"]


@dataclass(frozen=True, slots=True)
class AskMessage:
    """One turn: texts, and places of pictures by their number in `Ask.pictures`."""

    role: Role
    parts: tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class NewestFrame:
    """The newest frame of a source with ``seq > after_seq``."""

    source: str
    after_seq: int


@dataclass(frozen=True, slots=True)
class SharedImage:
    """RGB u8 [height, width, 3], row by row, in a memory file that whoever made it closes."""

    fd: int
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class ConstraintSpec:
    """What an answer must be. kind "json_schema": ``schema``; "choice": one of ``choices``; "json": any JSON object."""

    kind: Literal["json_schema", "json", "choice"]
    schema: Mapping[str, object] | bool | None = None
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Ask:
    """One question. ``params``: keyword arguments of `runtime.GenerationParams`. ``priority``: higher goes first, token
    by token; ``weight``: share among equals. ``kind`` chooses the KV slots: those of captions or those of chats."""

    kind: Literal["caption", "chat"]
    messages: tuple[AskMessage, ...]
    pictures: tuple[NewestFrame | SharedImage, ...] = ()
    params: Mapping[str, object] = field(default_factory=dict)
    constraint: ConstraintSpec | None = None
    priority: int = 0
    weight: float = 1.0
    deadline_s: float | None = None


@dataclass(frozen=True, slots=True)
class TokenChance:
    """A token that was, or could have been, chosen: its text, its bytes (a token may be part of a character)."""

    text: str
    bytes: bytes
    logprob: float


@dataclass(frozen=True, slots=True)
class AskDelta:
    """A piece of an answer; ``token`` and ``top`` are filled where ``params["top_logprobs"]`` asks for them."""

    text: str
    token_id: int
    logprob: float
    index: int
    t_ns: int
    token: TokenChance | None = None
    top: tuple[TokenChance, ...] = ()


@dataclass(frozen=True, slots=True)
class AskResult:
    """How an answer ended. ``frame``: which frame was captioned. ``timings_ms``: `runtime.Timings` by name."""

    text: str
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    image_tokens: int
    cached_tokens: int
    first_t_ns: int | None
    last_t_ns: int | None
    timings_ms: Mapping[str, float]
    frame: FrameFacts | None = None
