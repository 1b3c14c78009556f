"""An engine that answers from a script, a server around it, and the official client that asks."""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import openai

from runtime.captiond.asks import Ask, AskDelta, AskResult, FinishReason, SharedImage, TokenChance
from runtime.captiond.events import ChatFinished, EngineChanged, FrameFacts
from runtime.errors import ImageError, VlmError
from tests.runtime.captiond.http import parts

MODEL = "demo-llava"
WORDS = ("A", " red", " circle", " and", " a", " blue", " square", ".")


HELLO: list[Any] = [{"role": "user", "content": "What do you see?"}]
TEXT = "".join(WORDS)
JPEG = b"\xff\xd8 a picture"
DATA_URL = "data:image/jpeg;base64," + base64.b64encode(JPEG).decode()
ONE_IMAGE: list[Any] = [
    {
        "role": "user",
        "content": [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": DATA_URL}}],
    }
]


@dataclass
class Script:
    """What the engine says. ``error_at``: instead of that token ``error`` is raised. ``pause_at``: it waits there."""

    words: Sequence[str] = WORDS
    error: VlmError | None = None
    error_at: int = 0
    refuse: VlmError | None = None
    pause_at: int | None = None
    finish_reason: FinishReason = "stop"
    cached_tokens: int = 3
    trailing: str = ""


class Answer:
    """`Asked`, from a script."""

    def __init__(self, script: Script, ask: Ask) -> None:
        self._script, self._ask = script, ask
        self.cancelled = asyncio.Event()
        self._said: list[str] = []
        self._over = asyncio.Event()
        self._error: VlmError | None = None
        self.released = False

    def __aiter__(self) -> AsyncIterator[AskDelta]:
        return self._deltas()

    async def _deltas(self) -> AsyncIterator[AskDelta]:
        limit = int(self._ask.params["max_new_tokens"])
        try:
            for index, word in enumerate(self._script.words[:limit]):
                if self._script.error is not None and index == self._script.error_at:
                    raise self._script.error
                if index == self._script.pause_at:
                    await self.cancelled.wait()
                if self.cancelled.is_set():
                    return
                self._said.append(word)
                yield self._delta(word, index)
            if self._script.trailing:
                self._said.append(self._script.trailing)
                yield self._delta(self._script.trailing, len(self._script.words) - 1)
        except VlmError as error:
            self._error = error
            raise
        finally:
            self._over.set()

    def _delta(self, word: str, index: int) -> AskDelta:
        token, top = None, ()
        if "top_logprobs" in self._ask.params:
            token = TokenChance(word, word.encode(), -0.25)
            others = [TokenChance(f"~{n}", b"~", -1.0 - n) for n in range(int(self._ask.params["top_logprobs"]))]
            top = tuple(others)
        return AskDelta(word, 100 + index, -0.25, index, 1000 + index, token, top)

    async def started(self) -> FrameFacts | None:
        return None

    async def result(self) -> AskResult:
        if self.cancelled.is_set():
            self._over.set()
        await self._over.wait()
        if self._error is not None:
            raise self._error
        text = "".join(self._said)
        short = len(self._said) < len(self._script.words)
        reason = "cancelled" if self.cancelled.is_set() else "length" if short else self._script.finish_reason
        return AskResult(text, reason, 17, len(self._said), 9, self._script.cached_tokens, 10**9, 2 * 10**9, {})

    def cancel(self) -> None:
        self.cancelled.set()


class ScriptedEngine(parts.Engine):
    """Remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.script = Script()
        self.asks: list[Ask] = []
        self.answers: list[Answer] = []

    def ask(self, ask: Ask) -> Answer:
        self.asks.append(ask)
        if self.script.refuse is not None:
            raise self.script.refuse
        answer = Answer(self.script, ask)
        self.answers.append(answer)
        return answer


class Decoder(parts.Pictures):
    """Takes bytes that begin like a picture; each is a memory file of one pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.decoded: list[bytes] = []
        self.fds: list[int] = []

    async def decode(self, data: bytes) -> SharedImage:
        self.decoded.append(data)
        if not data.startswith((b"\xff\xd8", b"\x89PNG", b"RIFF")):
            raise ImageError("the image is no JPEG, PNG or WebP")
        fd = os.memfd_create("picture")
        os.truncate(fd, 3)
        self.fds.append(fd)
        return SharedImage(fd, 1, 1)


@dataclass
class Api:
    """A running server and what is behind it."""

    url: str
    engine: ScriptedEngine
    decoder: Decoder
    runner: parts.Runner
    finished: list[ChatFinished] = field(default_factory=list)

    def client(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key="unused", max_retries=0, timeout=30)

    @property
    def ask(self) -> Ask:
        return self.engine.asks[-1]


@asynccontextmanager
async def api(script: Script | None = None, **settings: Any) -> AsyncIterator[Api]:
    """A server on a free port in front of ``script``."""
    services = parts.services()
    engine, decoder = ScriptedEngine(), Decoder()
    engine.script = script or engine.script
    services.engine, services.pictures = engine, decoder
    finished: list[ChatFinished] = []
    services.bus.tap(lambda event: finished.append(event) if isinstance(event, ChatFinished) else None)
    async with parts.serving(parts=services, **settings) as running:
        yield Api(running.url, engine, decoder, services.sources["door"].runner, finished)


def unavailable(engine: ScriptedEngine, status: Any, message: str = "") -> None:
    """Put the engine out of work."""
    engine.state = EngineChanged(status, "", message, 1, None)


async def until(condition: Any) -> None:
    """Wait for ``condition()``, generously."""
    for _ in range(3000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come true in 30 s")


def image(url: Any, **more: Any) -> list[Any]:
    """Messages that show one image."""
    return [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url, **more}}]}]


def said(text: str) -> list[Any]:
    """Messages of one text part."""
    return [{"role": "user", "content": [{"type": "text", "text": text}]}]


def form(**inner: Any) -> dict[str, Any]:
    """A response_format with this json_schema."""
    return {"response_format": {"type": "json_schema", "json_schema": inner}}


async def create(a: Api, messages: list[Any] = HELLO, **options: Any) -> Any:
    async with a.client() as client:
        return await client.chat.completions.create(model=MODEL, messages=messages, **options)


async def streamed(a: Api, messages: list[Any] = HELLO, **options: Any) -> list[Any]:
    async with a.client() as client:
        stream = await client.chat.completions.create(model=MODEL, messages=messages, stream=True, **options)
        return [chunk async for chunk in stream]


def body_of(error: openai.APIStatusError) -> dict[str, Any]:
    body = error.response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    inner: dict[str, Any] = body["error"]
    return inner


def is_open(fd: int) -> bool:
    """Whether a file descriptor is in use."""
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True
