"""A conversation of several turns on one KV cache. Made by `Session.chat`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING

from runtime.constraint import Constraint
from runtime.errors import ClosedError, UsageError
from runtime.pictures import Color, ImageLike, VideoLike
from runtime.prompt import Message
from runtime.request import Picture, Request
from runtime.scheduling import Share
from runtime.slots import KvCache
from runtime.text_stream import Channel, TextStream
from runtime.turn import Turn, check_text, opening
from runtime.types import Answer, Delta, GenerationParams

if TYPE_CHECKING:
    from runtime.session import Session


class Chat:
    """A conversation. Each turn prefills only what the cache does not hold: ``usage.cached_tokens`` counts the rest.

    The answers equal those of a fresh request with the whole conversation. Images may come in any turn and keep the
    tiling that they had then. A turn that fails, or is cancelled before its first token, is not part of the
    conversation; a cancelled one is, with the text so far. When more conversations are in use than the session was
    opened for (``chats=…``), the one that was used longest ago, and of those whose turns are written at once the ones
    beyond that number, are prefilled again at their next turn. For one thread at a time.
    """

    def __init__(self, session: Session, system: str | None) -> None:
        self._session = session
        self._opening = opening(system)
        self._pending: Channel | None = None
        self._closed = False
        self.reset()

    @property
    def messages(self) -> tuple[Message, ...]:
        """The conversation so far."""
        return self._history

    def stream(
        self,
        prompt: str,
        images: Sequence[ImageLike] = (),
        *,
        video: VideoLike | None = None,
        color: Color = "rgb",
        params: GenerationParams | None = None,
        max_new_tokens: int | None = None,
        deadline_s: float | None = None,
        on_delta: Callable[[Delta], object] | None = None,
        priority: int = 0,
        weight: float = 1.0,
        constraint: Constraint | None = None,
    ) -> TextStream:
        """Ask the next question; arguments and errors are those of `Session.stream`.

        Raises UsageError while the answer before is still being written, PromptError when the conversation with this
        question exceeds the context: nothing has run then, and the conversation is as it was.
        """
        self._check_ready()
        check_text("prompt", prompt)
        merged = params or GenerationParams()
        if max_new_tokens is not None:
            merged = replace(merged, max_new_tokens=max_new_tokens)
        return self._session._stream(
            self._turn(prompt),
            images,
            video=video,
            color=color,
            params=merged,
            deadline_s=deadline_s,
            on_delta=on_delta,
            share=Share(priority, weight),
            constraint=constraint,
        )

    def generate(
        self,
        prompt: str,
        images: Sequence[ImageLike] = (),
        *,
        video: VideoLike | None = None,
        color: Color = "rgb",
        params: GenerationParams | None = None,
        max_new_tokens: int | None = None,
        deadline_s: float | None = None,
        priority: int = 0,
        weight: float = 1.0,
        constraint: Constraint | None = None,
    ) -> Answer:
        """Ask the next question and wait for the whole answer."""
        stream = self.stream(
            prompt,
            images,
            video=video,
            color=color,
            params=params,
            max_new_tokens=max_new_tokens,
            deadline_s=deadline_s,
            priority=priority,
            weight=weight,
            constraint=constraint,
        )
        return stream.answer()

    def reset(self) -> None:
        """Forget the conversation, and end an answer that is being written."""
        if self._pending is not None:
            self._pending.control.cancelled = True
        self._pending = None
        self._history = self._opening
        self._pictures: tuple[Picture, ...] = ()
        self._cache = KvCache()  # the old one's slot is free once nobody holds it

    def close(self) -> None:
        """Reset for good. Idempotent."""
        self.reset()
        self._closed = True

    def __enter__(self) -> Chat:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_ready(self) -> None:
        if self._closed:
            raise ClosedError("the chat is closed", hint="begin another one: session.chat()")
        pending = self._pending
        if pending is not None and not pending.done:
            if not pending.control.cancelled:
                raise UsageError("the answer before is still being written", hint="wait for answer(), or cancel() it")
            pending.settle()  # within one token

    def _turn(self, prompt: str) -> Turn:
        cache = self._cache

        def lend() -> KvCache:
            self._session._pipeline.slots.lend(cache)
            return cache

        def commit(request: Request) -> None:
            if cache is not self._cache or (request.finish_reason == "cancelled" and not request.token_ids):
                return  # reset meanwhile, or nothing was said
            self._history = (*request.messages, Message("assistant", ("".join(request.text),)))
            self._pictures = tuple(request.pictures)

        def begun(channel: Channel) -> None:
            self._pending = channel

        return Turn(prompt, self._history, self._pictures, lend, commit, begun)
