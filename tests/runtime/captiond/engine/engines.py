"""An `EngineClient` around a child for the length of a test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress

from runtime.captiond.asks import Ask, AskMessage, NewestFrame
from runtime.captiond.capture.ring import Ring
from runtime.captiond.clock import Clock
from runtime.captiond.config.settings import EngineSettings
from runtime.captiond.engine.client import EngineClient
from runtime.captiond.events import EngineChanged, Event
from tests.runtime.captiond.clocks import ManualClock

PATIENCE_S = 30.0


class Engine:
    """The client, its clock, and what it published."""

    def __init__(self, command: Sequence[str] | None, clock: Clock, captions: int, settings: EngineSettings) -> None:
        self.events: list[Event] = []
        self.clock = clock
        given = {} if command is None else {"command": command}
        self.client = EngineClient(settings, captions, self.events.append, clock, **given)

    @property
    def states(self) -> list[str]:
        """The states that were published, in order."""
        return [event.status for event in self.events if isinstance(event, EngineChanged)]

    @property
    def causes(self) -> list[str]:
        """Their causes."""
        return [event.cause for event in self.events if isinstance(event, EngineChanged)]

    async def pass_time(self, seconds: float) -> None:
        """Let the manual clock run."""
        assert isinstance(self.clock, ManualClock)
        await self.clock.advance(seconds)


@asynccontextmanager
async def engine(
    command: Sequence[str] | None,
    *,
    clock: Clock | None = None,
    captions: int = 1,
    load: bool = True,
    settings: EngineSettings | None = None,
) -> AsyncIterator[Engine]:
    """A client that runs; loaded, unless told otherwise. Its clock stands still unless another one is given."""
    made = Engine(command, clock or ManualClock(), captions, settings or EngineSettings())
    task = asyncio.create_task(made.client.run())
    try:
        if load:
            await eventually(lambda: made.client.answering)
        yield made
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait, in real time, for something that another process brings about."""
    end = asyncio.get_running_loop().time() + PATIENCE_S
    while not condition():
        assert asyncio.get_running_loop().time() < end, "it did not come about"
        await asyncio.sleep(0.005)


def chat(text: str = "Hello?", **params: object) -> Ask:
    """A question without a picture."""
    return Ask("chat", (AskMessage("user", (text,)),), params=params)


def caption(source: str = "door", after_seq: int = -1, text: str = "Describe the image.") -> Ask:
    """A question about the newest frame of a source."""
    return Ask("caption", (AskMessage("user", (0, text)),), (NewestFrame(source, after_seq),), priority=10)


def ring_with(*sizes: tuple[int, int]) -> Ring:
    """A ring with a gray frame of each size, numbered from 0, taken at 1 s, 2 s, …"""
    ring = Ring.create(3 * 640 * 480)
    for seq, size in enumerate(sizes):
        write(ring, seq, *size)
    return ring


def write(ring: Ring, seq: int, width: int = 8, height: int = 6) -> None:
    """One more frame."""
    assert ring.write(bytes([seq % 256]) * (3 * width * height), width, height, seq, (seq + 1) * 10**9, "exposure")
