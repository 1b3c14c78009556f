"""The nouns of `runtime.captiond.asks` as messages of `wire`, and back. Both ends use this page; neither knows numpy.

To the engine: ``open`` (first), ``attach`` (a ring's file), ``detach``, ``ask`` (files of its shared images),
``cancel``. From it: ``loading``, ``ready``, ``alive``, ``started``, ``delta``, ``result``, ``error``, ``failed``, with
which it ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import runtime.errors as errors
from runtime.captiond.asks import (
    Ask,
    AskDelta,
    AskMessage,
    AskResult,
    ConstraintSpec,
    NewestFrame,
    SharedImage,
    TokenChance,
)
from runtime.captiond.config.settings import EngineSettings
from runtime.captiond.engine.wire import Message, WireError


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What is known of a loaded engine. ``memory_bytes``: by purpose, as `Session.memory_report` says."""

    model: str
    decoder: str
    max_seq_len: int
    context_tokens: int
    memory_bytes: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Taken:
    """Which frame of a source an answer is about, and where it lies in the source's ring while the answer lasts."""

    seq: int
    t_capture_ns: int
    kind: str
    width: int
    height: int
    slot: int
    generation: int


def open_message(settings: EngineSettings, captions: int) -> dict[str, Any]:
    """What the engine has to load, and how many captions are written at once."""
    return {"type": "open", "settings": asdict(settings), "captions": captions}


def settings_of(message: Message) -> tuple[EngineSettings, int]:
    """The other end of `open_message`."""
    with _reading(message):
        return EngineSettings(**message["settings"]), int(message["captions"])


def ask_message(number: int, ask: Ask, deadline_s: float) -> tuple[dict[str, Any], list[int]]:
    """An ask, and the files of its shared images in their order. ``deadline_s`` is what is left of its time."""
    files = [picture.fd for picture in ask.pictures if isinstance(picture, SharedImage)]
    return {
        "type": "ask",
        "ask": number,
        "kind": ask.kind,
        "messages": [{"role": message.role, "parts": list(message.parts)} for message in ask.messages],
        "pictures": [_picture(picture) for picture in ask.pictures],
        "params": dict(ask.params),
        "constraint": None if ask.constraint is None else asdict(ask.constraint),
        "priority": ask.priority,
        "weight": ask.weight,
        "deadline_s": deadline_s,
    }, files


def ask_of(message: Message, files: Sequence[int]) -> Ask:
    """The other end of `ask_message`: ``files`` take the places of the sender's."""
    with _reading(message):
        waiting = list(files)
        spec = message["constraint"]
        return Ask(
            kind=message["kind"],
            messages=tuple(AskMessage(one["role"], tuple(one["parts"])) for one in message["messages"]),
            pictures=tuple(_picture_of(picture, waiting) for picture in message["pictures"]),
            params={**message["params"], **_tuples(message["params"])},
            constraint=None
            if spec is None
            else ConstraintSpec(spec["kind"], spec["schema"], tuple(str(choice) for choice in spec["choices"])),
            priority=int(message["priority"]),
            weight=float(message["weight"]),
            deadline_s=float(message["deadline_s"]),
        )


def delta_message(number: int, delta: AskDelta) -> dict[str, Any]:
    """A piece of the answer to ask ``number``."""
    message: dict[str, Any] = {
        "type": "delta",
        "ask": number,
        "text": delta.text,
        "id": delta.token_id,
        "logprob": delta.logprob,
        "index": delta.index,
        "t_ns": delta.t_ns,
    }
    if delta.token is not None:
        message["token"] = _chance(delta.token)
        message["top"] = [_chance(chance) for chance in delta.top]
    return message


def delta_of(message: Message) -> AskDelta:
    """The other end of `delta_message`."""
    with _reading(message):
        token = message.get("token")
        return AskDelta(
            text=str(message["text"]),
            token_id=int(message["id"]),
            logprob=float(message["logprob"]),
            index=int(message["index"]),
            t_ns=int(message["t_ns"]),
            token=None if token is None else _chance_of(token),
            top=tuple(_chance_of(chance) for chance in message.get("top", ())),
        )


def result_message(number: int, result: AskResult) -> dict[str, Any]:
    """The end of the answer to ask ``number``; its frame was named when it started."""
    content = asdict(result)
    del content["frame"]
    return {"type": "result", "ask": number, "result": {**content, "timings_ms": dict(result.timings_ms)}}


def result_of(message: Message) -> AskResult:
    """The other end of `result_message`."""
    with _reading(message):
        return AskResult(**message["result"])


def started_message(number: int, taken: Taken | None) -> dict[str, Any]:
    """Ask ``number`` begins, with this frame."""
    return {"type": "started", "ask": number, "frame": None if taken is None else asdict(taken)}


def taken_of(message: Message) -> Taken | None:
    """The other end of `started_message`."""
    with _reading(message):
        frame = message["frame"]
        return None if frame is None else Taken(**frame)


def ready_message(facts: EngineFacts) -> dict[str, Any]:
    """The engine is loaded."""
    return {"type": "ready", "facts": asdict(facts)}


def facts_of(message: Message) -> EngineFacts:
    """The other end of `ready_message`."""
    with _reading(message):
        return EngineFacts(**message["facts"])


def error_values(error: BaseException) -> dict[str, Any]:
    """An error as values: the nearest class of `runtime.errors`, message and hint. Others become EngineError."""
    if isinstance(error, errors.VlmError):
        known = next(cls.__name__ for cls in type(error).__mro__ if getattr(errors, cls.__name__, None) is cls)
        return {"error": known, "message": error.message, "hint": error.hint}
    text = str(error) or "no message"
    return {"error": "EngineError", "message": f"{type(error).__name__}: {text[:2000]}", "hint": None}


def error_of(message: Message) -> errors.VlmError:
    """The other end of `error_values`."""
    with _reading(message):
        cls = getattr(errors, str(message["error"]), None)
        hint = message["hint"]
        if not (isinstance(cls, type) and issubclass(cls, errors.VlmError)):
            cls = errors.EngineError
        return cls(str(message["message"]), hint=None if hint is None else str(hint))


def number_of(message: Message) -> int:
    """Which ask a message is about."""
    with _reading(message):
        return int(message["ask"])


def _picture(picture: NewestFrame | SharedImage) -> dict[str, Any]:
    if isinstance(picture, NewestFrame):
        return {"source": picture.source, "after_seq": picture.after_seq}
    return {"width": picture.width, "height": picture.height}


def _picture_of(picture: Mapping[str, Any], files: list[int]) -> NewestFrame | SharedImage:
    if "source" in picture:
        return NewestFrame(str(picture["source"]), int(picture["after_seq"]))
    return SharedImage(files.pop(0), int(picture["width"]), int(picture["height"]))


def _chance(chance: TokenChance) -> list[object]:
    return [chance.text, chance.bytes.hex(), chance.logprob]


def _chance_of(values: Sequence[Any]) -> TokenChance:
    text, content, logprob = values
    return TokenChance(str(text), bytes.fromhex(content), float(logprob))


def _tuples(params: Mapping[str, Any]) -> dict[str, object]:
    """JSON knows no tuples; `runtime.GenerationParams` has them for its lists."""
    return {name: tuple(value) for name, value in params.items() if isinstance(value, list)}


@contextmanager
def _reading(message: Message) -> Iterator[None]:
    """What is missing in a message, or of another kind than it should be, is the peer's fault."""
    try:
        yield
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as problem:
        kind = message.get("type")
        raise WireError(f"the peer sent a message {kind!r} that cannot be read ({problem!r})") from problem
