"""The child's end of the wire, in this process, with a stand-in for the model."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from runtime.captiond.asks import Ask
from runtime.captiond.config.settings import EngineSettings
from runtime.captiond.engine import messages
from runtime.captiond.engine.server import Model, Pixels, Server
from runtime.captiond.engine.wire import Connection
from tests.runtime.captiond.engine.engines import chat, eventually
from tests.runtime.captiond.stand_in_engine import StandIn, Writing


class Daemon:
    """The other end, by hand."""

    def __init__(self, end: socket.socket) -> None:
        self.heard: list[dict[str, Any]] = []
        self.socket = end.dup()
        self.connection = Connection(end, lambda message, _: self.heard.append(message), lambda _: None)

    async def hear(self, kind: str) -> dict[str, Any]:
        """The next message of this type."""
        await eventually(lambda: any(message["type"] == kind for message in self.heard))
        found = next(message for message in self.heard if message["type"] == kind)
        self.heard.remove(found)
        return found


@asynccontextmanager
async def serving(model: Model) -> AsyncIterator[tuple[Daemon, asyncio.Task[bool]]]:
    """A server of ``model`` that is loaded, and the daemon's end."""

    def load(settings: EngineSettings, captions: int) -> Model:
        return model

    ours, theirs = socket.socketpair()
    daemon = Daemon(ours)
    served = asyncio.create_task(Server(load).serve(theirs))
    daemon.connection.send(messages.open_message(EngineSettings(), 1))
    await daemon.hear("ready")
    try:
        yield daemon, served
    finally:
        daemon.socket.close()
        daemon.connection.close()
        await served


def framed(*sent: dict[str, Any]) -> bytes:
    texts = [json.dumps(message).encode() for message in sent]
    return b"".join(struct.pack(">I", len(text)) + text for text in texts)


def test_question_and_its_cancellation_in_one_breath_end_it() -> None:
    async def main() -> None:
        async with serving(StandIn({"token_s": 0.01})) as (daemon, _):
            ask, _ = messages.ask_message(1, chat('{"do": "endless"}'), 60)
            daemon.socket.setblocking(True)
            daemon.socket.sendall(framed(ask, {"type": "cancel", "ask": 1}))
            assert (await daemon.hear("result"))["result"]["finish_reason"] == "cancelled"

    asyncio.run(main())


def test_daemon_that_speaks_nonsense_ends_the_service() -> None:
    async def main() -> None:
        for nonsense in ({"type": "dance"}, {"type": "ask", "ask": 1}, {"type": "attach", "source": "door"}):
            async with serving(StandIn({})) as (daemon, served):
                daemon.connection.send(nonsense)
                assert await asyncio.wait_for(served, 30) is True

    asyncio.run(main())


def test_file_that_is_no_ring_ends_the_service_and_is_closed() -> None:
    async def main() -> None:
        async with serving(StandIn({})) as (daemon, served):
            reading, writing = os.pipe()
            daemon.connection.send({"type": "attach", "source": "door"}, [writing])
            os.close(writing)
            assert await asyncio.wait_for(served, 30) is True
            assert os.read(reading, 1) == b""  # the last writing end is gone
            os.close(reading)

    asyncio.run(main())


def test_model_that_is_lost_is_said_instead_of_the_answers_end() -> None:
    async def main() -> None:
        async with serving(StandIn({})) as (daemon, served):
            daemon.connection.send(messages.ask_message(1, chat('{"do": "sticky", "at": 1}'), 60)[0])
            failed = await daemon.hear("failed")
            assert failed["error"] == "EngineError" and "context is lost" in failed["message"]
            assert not any(message["type"] == "error" for message in daemon.heard)
            assert await asyncio.wait_for(served, 30) is False

    asyncio.run(main())


def test_bug_of_the_service_itself_is_said_too() -> None:
    class Sick(StandIn):
        @property
        def steps(self) -> int:  # type: ignore[override]
            raise RuntimeError("no steps")

        @steps.setter
        def steps(self, value: int) -> None: ...

        def begin(self, ask: Ask, images: Sequence[Pixels]) -> Writing:
            raise AssertionError

    async def main() -> None:
        async with serving(Sick({})) as (daemon, served):
            assert (await daemon.hear("failed"))["message"] == "RuntimeError: no steps"
            assert await asyncio.wait_for(served, 30) is False

    asyncio.run(main())
