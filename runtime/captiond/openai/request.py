"""What a chat request asks for, once it is understood."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from runtime.captiond.asks import ConstraintSpec, Role


@dataclass(frozen=True, slots=True)
class ImageRef:
    """Where an image comes from, unread: ``url`` begins with "data:", "http:", "https:" or "source:"."""

    url: str
    param: str


@dataclass(frozen=True, slots=True)
class Turn:
    """One message: texts and images in their order."""

    role: Role
    parts: tuple[str | ImageRef, ...]


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A request for one completion. ``params``: keyword arguments of `runtime.GenerationParams`."""

    model: str
    turns: tuple[Turn, ...]
    params: Mapping[str, object]
    constraint: ConstraintSpec | None
    stream: bool
    include_usage: bool
    logprobs: bool

    @property
    def images(self) -> tuple[ImageRef, ...]:
        """All images, in their order."""
        return tuple(part for turn in self.turns for part in turn.parts if isinstance(part, ImageRef))
