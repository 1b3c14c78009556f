"""What sets one question apart from another: what was said before it, and whose KV cache it continues."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from runtime.errors import PromptError
from runtime.pictures import Shown
from runtime.pipeline import Pipeline
from runtime.prompt import ImagePart, Message
from runtime.request import Picture, Request
from runtime.slots import KvCache
from runtime.text_stream import Channel


def _nothing(_: object) -> None:
    """A single answer leaves no trace."""


@dataclass(frozen=True, slots=True)
class Turn:
    """A question with its history.

    ``pictures`` are those of ``history``; ``lend`` gives the KV cache on the owner thread; ``commit`` is told of the
    answer there, before its reader is; ``begun`` gets the mailbox once the request is queued.
    """

    prompt: str | None
    history: tuple[Message, ...]
    pictures: tuple[Picture, ...]
    lend: Callable[[], KvCache]
    commit: Callable[[Request], None] = _nothing
    begun: Callable[[Channel], None] = _nothing

    def messages(self, shown: Shown) -> tuple[Message, ...]:
        """The conversation up to this question, which shows new pictures.

        They stand before the question's text and are numbered behind those of the history. Without a ``prompt`` the
        history is the whole conversation and places its images itself.
        """
        if self.prompt is None:
            return self.history
        return (*self.history, Message("user", (*shown.parts(len(self.pictures)), self.prompt)))

    def together(self, shown: Shown) -> list[list[int]]:
        """The new images by message, counted from 0: those of one message are tiled, or not, together."""
        every = range(len(shown.images))
        if self.prompt is not None:
            return [list(every)]
        places = [[part.index for part in message.parts if isinstance(part, ImagePart)] for message in self.history]
        known = [[index for index in group if index in every] for group in places]
        return [*known, sorted(set(every) - {index for group in known for index in group})]


def single_turn(pipeline: Pipeline, prompt: str | Sequence[Message], system: str | None) -> Turn:
    """A question, or a conversation that ends with one, on a slot for single answers."""
    if isinstance(prompt, Sequence) and not isinstance(prompt, (str, bytes)) and prompt:
        if system is not None:
            raise PromptError("system is given, and a conversation too", hint='begin it with Message("system", …)')
        for message in prompt:
            _check_message(message)
        return Turn(None, tuple(prompt), (), pipeline.slots.answer_cache)
    check_text("prompt", prompt)
    return Turn(str(prompt), opening(system), (), pipeline.slots.answer_cache)


def opening(system: str | None) -> tuple[Message, ...]:
    """The messages before the first question."""
    if system is None:
        return ()
    check_text("system", system)
    return (Message("system", (system,)),)


def _check_message(message: object) -> None:
    if not isinstance(message, Message):
        raise PromptError(f"a conversation holds a {type(message).__name__}", hint='Message("user", ("Hello?",))')
    for part in message.parts:
        if not isinstance(part, ImagePart):
            check_text(f"a part of the {message.role}'s message", part)


def check_text(name: str, text: object) -> None:
    """PromptError for what is not text, or cannot be encoded as UTF-8."""
    if not isinstance(text, str):
        raise PromptError(f"{name} is of type {type(text).__name__}: a str is needed")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise PromptError(f"{name} has a lone surrogate at character {error.start}") from error
