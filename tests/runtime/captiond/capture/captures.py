"""A launcher without processes: its children are driven by the test, their frames go into the real ring."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from runtime.captiond.capture.ring import Ring
from runtime.captiond.capture.supervisor import SourceRunner
from runtime.captiond.config.settings import SourceSettings
from runtime.captiond.events import SourceChanged
from runtime.errors import VlmError
from tests.runtime.captiond.clocks import ManualClock, settle

SIDE_PX = 64


class StandInChild:
    """One attempt: `frame` delivers, `say` sends a message, `exit` ends it; a kill ends it too."""

    def __init__(self, ring: Ring, first_seq: int, clock: ManualClock) -> None:
        self.pid = 4242
        self.heard: list[Mapping[str, object]] = []
        self.seq = first_seq
        self.first_seq = first_seq
        self._ring, self._clock = ring, clock
        self._words: asyncio.Queue[dict[str, object] | None] = asyncio.Queue()
        self._status: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    @property
    def alive(self) -> bool:
        return not self._status.done()

    def frame(self, *, told: bool = True, skip: int = 0, t_ns: int | None = None) -> None:
        self.seq += skip
        now_ns = self._clock.now_ns() if t_ns is None else t_ns
        assert self._ring.write(bytes(3 * 4), 2, 2, self.seq, now_ns, "arrival")
        if told:
            self.say(type="frame", seq=self.seq, t_capture_ns=now_ns)
        self.seq += 1

    def say(self, **message: object) -> None:
        self._words.put_nowait(message)

    def exit(self, status: int) -> None:
        if self.alive:
            self._status.set_result(status)
            self._words.put_nowait(None)

    async def messages(self) -> AsyncIterator[dict[str, object]]:
        while (message := await self._words.get()) is not None:
            yield message

    def send(self, message: Mapping[str, object]) -> None:
        self.heard.append(message)

    def kill(self, signal: int = signal.SIGKILL) -> None:
        self.exit(-signal)

    async def wait(self) -> int:
        return await asyncio.shield(self._status)


class StandInLauncher:
    """Keeps the children that it made; ``refusal`` is raised instead, ``hang`` never returns, and if ``late`` it does
    so when it is cancelled."""

    def __init__(self, clock: ManualClock) -> None:
        self.children: list[StandInChild] = []
        self.passwords: list[str | None] = []
        self.refusal: Exception | None = None
        self.hang = self.late = False
        self._clock = clock

    async def launch_capture(
        self, source: SourceSettings, password: str | None, ring: Ring, first_seq: int
    ) -> StandInChild:
        self.passwords.append(password)
        if self.hang:
            try:
                await asyncio.get_running_loop().create_future()
            except asyncio.CancelledError:
                if not self.late:
                    raise
        if self.refusal is not None:
            raise self.refusal
        child = StandInChild(ring, first_seq, self._clock)
        self.children.append(child)
        return child


class Bench:
    """A runner on the manual clock, with everything that it told. ``away`` is what its probe raises."""

    def __init__(
        self, uri: str = "rtsp://camera/1", password: Callable[[], str | None] = lambda: None, **settings: Any
    ):
        self.clock = ManualClock()
        self.launcher = StandInLauncher(self.clock)
        self.events: list[SourceChanged] = []
        self.away: VlmError | None = None
        self.probes: list[float] = []
        given = SourceSettings(name="door", uri=uri, max_side_px=SIDE_PX, **settings)
        self.runner = SourceRunner(
            given, password, self.launcher, self._keep, self.clock, random.Random(5), self._probe
        )
        self._task: asyncio.Task[None] | None = None

    def _keep(self, event: object) -> None:
        assert isinstance(event, SourceChanged)
        self.events.append(event)

    async def _probe(self, settings: SourceSettings, password: str | None, timeout_s: float) -> None:
        self.probes.append(self.now_s)
        if self.away is not None:
            raise self.away

    @property
    def now_s(self) -> float:
        return self.clock.now_ns() / 1e9 - 1000

    @property
    def told(self) -> list[tuple[str, str]]:
        return [(event.status, event.cause) for event in self.events]

    @property
    def child(self) -> StandInChild:
        return self.launcher.children[-1]

    @property
    def ended(self) -> bool:
        assert self._task is not None
        return self._task.done()

    async def __aenter__(self) -> Bench:
        self._task = asyncio.create_task(self.runner.run())
        await settle(100)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self.runner.close()

    async def advance(self, seconds: float) -> None:
        await settle(100)
        await self.clock.advance(seconds)
        await settle(100)

    async def play(self, seconds: float, fps: float = 25.0) -> None:
        """Frames at a steady rate from the newest child; the last one comes at the end."""
        for _ in range(round(seconds * fps)):
            await self.clock.advance(1 / fps)
            self.child.frame()
        await settle(100)

    async def until(self, condition: Callable[[], bool], within_s: float, step_s: float = 0.05) -> float:
        """Seconds that passed until ``condition`` held."""
        begun_s = self.now_s
        while not condition():
            assert self.now_s - begun_s < within_s, f"not within {within_s} s: {self.told}"
            await self.advance(step_s)
        return self.now_s - begun_s
