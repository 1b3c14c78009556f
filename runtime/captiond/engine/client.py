"""The engine as the daemon sees it: it takes questions at any time and keeps a child process alive that answers them.

    engine = EngineClient(config.engine, len(config.sources), bus.publish, clock)
    task = asyncio.create_task(engine.run())
    engine.attach_source("door", runner.ring)
    asked = engine.ask(Ask("chat", (AskMessage("user", ("Hello?",)),)))
    async for delta in asked: ...
    result = await asked.result()

A child that dies, does not load in time or falls silent is replaced. What waited goes on waiting; what had begun
without a token is asked once more; what had a token fails with an EngineError. No numpy here.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol

from runtime.captiond.asks import Ask, NewestFrame
from runtime.captiond.clock import NS_PER_S, Clock
from runtime.captiond.config.settings import EngineSettings
from runtime.captiond.engine.asked import Asked
from runtime.captiond.engine.docket import Docket, EngineStats
from runtime.captiond.engine.life import Death, Life
from runtime.captiond.engine.lives import STAYS_UP_S, Lives
from runtime.captiond.engine.messages import EngineFacts, Taken
from runtime.captiond.events import EngineChanged, EngineStatus, Event, FrameFacts
from runtime.errors import VlmError

CHILD = "runtime.captiond.engine.child"
TICK_S = 0.25
_READER_ENGINE = 1


class RingView(Protocol):
    """`runtime.captiond.capture.ring.Ring`."""

    @property
    def fd(self) -> int: ...
    def unpin_all(self, reader: int) -> None: ...


class EngineClient:
    """Questions in, answers out, and one child process. Everything on one event loop.

    ``captions``: how many captions may be written at once (one per source). ``command``: what is run instead of the
    real engine, in tests. ``state`` is what was last published as an event.
    """

    def __init__(
        self,
        settings: EngineSettings,
        captions: int,
        publish: Callable[[Event], None],
        clock: Clock,
        command: Sequence[str] = (sys.executable, "-m", CHILD),
    ) -> None:
        self.settings = settings
        self.state = EngineChanged("loading", "start", "the engine is loading", 0, None)
        self.facts: EngineFacts | None = None
        self._captions = max(1, captions)
        self._publish = publish
        self._clock = clock
        self._command = tuple(command)
        self._lives = Lives()
        self._life: Life | None = None
        self._refusal: VlmError | None = None
        self._rings: dict[str, RingView] = {}
        self._docket = Docket(settings, captions)
        self._number = 0
        self._waiters: list[asyncio.Future[None]] = []

    @property
    def stats(self) -> EngineStats:
        """Counts since the daemon started."""
        return self._docket.stats

    @property
    def model(self) -> str | None:
        """The model's name, once it was loaded."""
        return None if self.facts is None else self.facts.model

    @property
    def answering(self) -> bool:
        """Whether a loaded engine is there now."""
        return self._life is not None and self._life.ready

    @property
    def pid(self) -> int | None:
        """The child, if there is one."""
        return None if self._life is None else self._life.pid

    @property
    def heard_ns(self) -> int:
        """When the child last said anything; 0 without one."""
        return 0 if self._life is None else self._life.heard_ns

    async def wait_answering(self) -> None:
        """Wait until a loaded engine is there."""
        while not self.answering:
            await self._change()

    async def first_load(self) -> None:
        """Wait until the engine is loaded for the first time; raises the VlmError with which loading failed."""
        while not self.answering:
            if self._refusal is not None:
                raise self._refusal
            await self._change()

    def ask(self, ask: Ask) -> Asked:
        """Take a question. Raises BusyError when ``queue`` chats wait, UsageError for what no engine could answer."""
        self._docket.check(ask)
        self._number += 1
        limit_s = self.settings.deadline_s if ask.deadline_s is None else ask.deadline_s
        asked = Asked(self._number, ask, self._clock.now_ns() + int(limit_s * NS_PER_S), self._docket.withdraw)
        self._docket.add(asked)
        return asked

    def attach_source(self, name: str, ring: RingView) -> None:
        """From now on questions may name this source. The ring stays the caller's."""
        self._rings[name] = ring
        if self._life is not None:
            self._life.attach(name, ring.fd)

    def detach_source(self, name: str) -> None:
        """The source is gone; an answer about one of its frames goes on."""
        if self._rings.pop(name, None) is not None and self._life is not None:
            self._life.detach(name)

    def reload(self, settings: EngineSettings) -> None:
        """Take new limits of time and of the queue from now on; the rest of ``settings`` with the next engine."""
        self.settings = self._docket.settings = settings
        if self._life is not None:
            self._life.settings = settings

    async def run(self) -> None:
        """Keep an engine alive until cancelled; it is gone within a second or two then."""
        try:
            while True:
                death = await self._one_life()
                pause_s = self._mourn(death)
                if pause_s:
                    await self._pause(pause_s)
        finally:
            self._close()

    # ---- lives

    async def _one_life(self) -> Death:
        """Start a child, serve until it dies, and say why it did."""
        try:
            life = Life(self.settings, self._captions, self._clock, self._command, self)
        except OSError as problem:
            return Death("start", f"the engine cannot be started: {problem.strerror}", None)
        for name, ring in self._rings.items():
            life.attach(name, ring.fd)
        self._life = self._docket.life = life
        watch = asyncio.create_task(self._watch())
        try:
            return await life.died()
        finally:
            watch.cancel()
            with suppress(asyncio.CancelledError):
                await watch
            await life.end()

    async def _watch(self) -> None:
        """Look after deadlines and silence; note that the engine stays up."""
        life = self._life
        assert life is not None
        while True:
            await self._clock.sleep(TICK_S)
            now_ns = self._clock.now_ns()
            self._docket.overdue(now_ns)
            life.look(now_ns)
            up = life.ready_ns is not None and now_ns - life.ready_ns >= STAYS_UP_S * NS_PER_S
            if up and self._lives.degraded:
                self._change_state("ready", "recovered", "the engine stays up", self.state.load_s)
            if up:
                self._lives.stays_up()

    def _mourn(self, death: Death) -> float:
        """Count a death, sort out the questions that were running, and say what comes next."""
        self._life = None
        now_ns = self._clock.now_ns()
        pause_s = self._lives.died(now_ns, hopeless=death.refusal is not None)
        self._refusal = death.refusal
        self.stats.restarts += 1
        self.stats.deaths[death.cause] += 1
        for ring in self._rings.values():
            ring.unpin_all(_READER_ENGINE)
        self._docket.bury(death)
        degraded = self._lives.degraded
        text = f"{death.message}; the next one is started" + (f" in {pause_s:g} s" if pause_s else "")
        self._change_state("degraded" if degraded else "restarting", death.cause, text, self.state.load_s)
        return pause_s

    async def _pause(self, seconds: float) -> None:
        """Wait before the next life; questions that wait keep their deadlines."""
        end_ns = self._clock.now_ns() + int(seconds * NS_PER_S)
        while (left_ns := end_ns - self._clock.now_ns()) > 0:
            await self._clock.sleep(min(TICK_S, left_ns / NS_PER_S))
            self._docket.overdue(self._clock.now_ns())

    def _close(self) -> None:
        self._life = None
        self._docket.close()
        for ring in self._rings.values():
            ring.unpin_all(_READER_ENGINE)
        self._change_state("stopped", "stop", "the engine was stopped", self.state.load_s)

    # ---- what a life tells

    def is_ready(self, facts: EngineFacts, load_s: float) -> None:
        """The child has loaded the model."""
        self.facts = facts
        first = self.stats.restarts == 0
        if self._lives.degraded:
            text = f"the engine is loaded again; it counts as sound after {STAYS_UP_S:g} s"
            self._change_state("degraded", self.state.cause, text, load_s)
        else:
            text = f"the engine is loaded ({facts.model})" + ("" if first else " again")
            self._change_state("ready", "loaded" if first else "restarted", text, load_s)
        self._docket.dispatch()

    def frame_facts(self, asked: Asked, taken: Taken | None) -> FrameFacts | None:
        """What the daemon knows of a frame that the child took."""
        source = next((one.source for one in asked.ask.pictures if isinstance(one, NewestFrame)), None)
        if taken is None or source is None:
            return None
        age_ns = self._clock.now_ns() - taken.t_capture_ns
        unix = (self._clock.wall_ns() - age_ns) / NS_PER_S
        kind = "exposure" if taken.kind == "exposure" else "arrival"
        return FrameFacts(source, taken.seq, taken.t_capture_ns, unix, kind, taken.width, taken.height)  # type: ignore[arg-type]

    def wrote(self) -> None:
        """A token came."""
        self.stats.tokens += 1

    def ended(self, asked: Asked) -> None:
        """A question is no longer running: the next one may."""
        self._docket.dispatch()

    # ---- state

    def _change_state(self, status: EngineStatus, cause: str, message: str, load_s: float | None) -> None:
        self.state = EngineChanged(status, cause, message, self.stats.restarts, load_s)
        self._publish(self.state)
        waiters, self._waiters = self._waiters, []
        for future in waiters:
            if not future.done():
                future.set_result(None)

    async def _change(self) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(future)
        await future
