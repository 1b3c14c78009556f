"""One life of the engine's child: the process, its connection, what it was asked, and how it ended."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from runtime.captiond.clock import NS_PER_S, Clock
from runtime.captiond.config.settings import EngineSettings
from runtime.captiond.engine import messages
from runtime.captiond.engine.asked import Asked
from runtime.captiond.engine.messages import EngineFacts, Taken
from runtime.captiond.engine.process import EngineProcess, cause_of_exit
from runtime.captiond.engine.wire import Connection, Message, WireError
from runtime.captiond.events import FrameFacts
from runtime.errors import EngineError, VlmError

_STALLED_NS = 2 * NS_PER_S  # the daemon itself did not run for so long: nobody else is to blame for silence


class Listener(Protocol):
    """Whom a life tells what happens: `EngineClient`."""

    def is_ready(self, facts: EngineFacts, load_s: float) -> None: ...
    def frame_facts(self, asked: Asked, taken: Taken | None) -> FrameFacts | None: ...
    def wrote(self) -> None: ...
    def ended(self, asked: Asked) -> None: ...


@dataclass(frozen=True, slots=True)
class Death:
    """Why a child is gone. ``refusal``: the error with which it said itself that it cannot run."""

    cause: str
    message: str
    refusal: VlmError | None


class Life:
    """Begins with the start of the process; `died` says when and why it is over, `end` clears it away.

    Raises OSError when no process can be started.
    """

    def __init__(
        self, settings: EngineSettings, captions: int, clock: Clock, command: Sequence[str], listener: Listener
    ) -> None:
        self.running: dict[int, Asked] = {}
        self.ready_ns: int | None = None
        self.settings = settings
        self._clock = clock
        self._listener = listener
        self._began_ns = self._looked_ns = self.heard_ns = self._moved_ns = clock.now_ns()
        self._steps = 0
        self._death: asyncio.Future[Death] = asyncio.get_running_loop().create_future()
        self._process, end = EngineProcess.start(command)
        self._connection = Connection(end, self._heard, self._hung_up)
        self._connection.send(messages.open_message(settings, captions))

    @property
    def ready(self) -> bool:
        """Whether the model is loaded and nothing ended it yet."""
        return self.ready_ns is not None and not self._death.done()

    @property
    def pid(self) -> int:
        """Of the child."""
        return self._process.pid

    async def died(self) -> Death:
        """Wait for the end, and say why."""
        return await asyncio.shield(self._death)

    async def end(self) -> None:
        """Make sure that the process is gone: it leaves at the end of its connection, or is killed."""
        self._connection.close()
        if not self._death.done():
            self._death.cancel()
        await self._process.end()

    # ---- to the child

    def attach(self, name: str, fd: int) -> None:
        """Give it the ring of a source."""
        self._connection.send({"type": "attach", "source": name}, [fd])

    def detach(self, name: str) -> None:
        """A source is gone."""
        self._connection.send({"type": "detach", "source": name})

    def begin(self, asked: Asked) -> None:
        """Hand a question over."""
        now_ns = self._clock.now_ns()
        left_s = max(0.001, (asked.deadline_ns - now_ns) / NS_PER_S)
        message, files = messages.ask_message(asked.number, asked.ask, left_s)
        if not self.running:
            self._moved_ns = now_ns  # it was idle: its time to move begins now
        self.running[asked.number] = asked
        try:
            self._connection.send(message, files)
        except (
            WireError,
            OSError,
            ValueError,
            TypeError,
        ) as problem:  # too large, a closed file, a value that is no JSON
            self._over(asked)
            asked.fail(EngineError(f"the request cannot be handed to the engine: {problem}"))

    def cancel(self, asked: Asked) -> None:
        """End an answer within one token."""
        self._connection.send({"type": "cancel", "ask": asked.number})

    def look(self, now_ns: int) -> None:
        """Called a few times a second: silence that lasts too long ends this life."""
        if now_ns - self._looked_ns > _STALLED_NS:
            self.heard_ns = self._moved_ns = now_ns
        self._looked_ns = now_ns
        if self._death.done():
            return
        if self.ready_ns is None:
            if now_ns - self._began_ns > self.settings.load_s * NS_PER_S:
                self._kill("load", f"the engine did not load within {self.settings.load_s:g} s")
            return
        silent_ns = now_ns - (self._moved_ns if self.running else self.heard_ns)
        if silent_ns > self.settings.hang_s * NS_PER_S:
            doing = "no token" if self.running else "no sign of life"
            self._kill("hang", f"the engine gave {doing} for {silent_ns / NS_PER_S:.0f} s and was killed")

    # ---- from the child

    def _heard(self, message: dict[str, Any], files: list[int]) -> None:
        for file in files:
            os.close(file)
        self.heard_ns = self._clock.now_ns()
        handler = {
            "loading": self._loading,
            "ready": self._loaded,
            "alive": self._alive,
            "started": self._started,
            "delta": self._delta,
            "result": self._result,
            "error": self._error,
            "failed": self._failed,
        }.get(message["type"])
        if handler is None:
            raise WireError(f"the engine sent a message of type {message['type']!r}")
        handler(message)

    def _loading(self, message: Message) -> None:
        """It lives; `look` knows how long it may take."""

    def _loaded(self, message: Message) -> None:
        facts = messages.facts_of(message)
        self.ready_ns = self._moved_ns = self._clock.now_ns()
        self._listener.is_ready(facts, (self.ready_ns - self._began_ns) / NS_PER_S)

    def _alive(self, message: Message) -> None:
        """Steps of the engine that are no tokens (a chunk of a long prompt, a picture seen) count as moving."""
        steps = message.get("steps")
        if isinstance(steps, int) and steps != self._steps:
            self._steps = steps
            self._moved_ns = self.heard_ns

    def _asked(self, message: Message) -> Asked | None:
        self._moved_ns = self.heard_ns
        return self.running.get(messages.number_of(message))

    def _started(self, message: Message) -> None:
        asked, taken = self._asked(message), messages.taken_of(message)
        if asked is not None:
            place = None if taken is None else (taken.slot, taken.generation)
            asked.begin(self._listener.frame_facts(asked, taken), place)

    def _delta(self, message: Message) -> None:
        asked = self._asked(message)
        if asked is not None:
            asked.put(messages.delta_of(message))
            self._listener.wrote()

    def _result(self, message: Message) -> None:
        asked, result = self._asked(message), messages.result_of(message)
        if asked is None:
            return
        if asked.overdue and not asked.cancelled and result.finish_reason == "cancelled":
            result = replace(result, finish_reason="deadline")
        self._over(asked)
        asked.finish(replace(result, frame=asked.frame))
        self._listener.ended(asked)

    def _error(self, message: Message) -> None:
        asked, error = self._asked(message), messages.error_of(message)
        if asked is not None:
            self._over(asked)
            asked.fail(error)
            self._listener.ended(asked)

    def _over(self, asked: Asked) -> None:
        self.running.pop(asked.number, None)

    def _failed(self, message: Message) -> None:
        """It says itself that it cannot go on, and exits: what it says is more than its exit status would tell."""
        error = messages.error_of(message)
        refused = self.ready_ns is None
        doing = "cannot be loaded" if refused else "cannot go on"
        text = f"the engine {doing}: {error}"
        self._dies(Death(type(error).__name__ if refused else "sticky", text, error if refused else None))

    def _hung_up(self, problem: WireError | None) -> None:
        if problem is not None:
            self._kill("protocol", f"the engine spoke nonsense and was killed: {problem}")
        elif not self._death.done():
            self._task = asyncio.create_task(self._exited())

    async def _exited(self) -> None:
        status = await self._process.wait()
        doing = "answered" if self.ready_ns is not None else "loaded"
        cause = cause_of_exit(status)
        how = f"was ended by {cause}" if status < 0 else f"left with {cause}"
        self._dies(Death(cause, f"the engine {how} while it {doing}", None))

    def _kill(self, cause: str, message: str) -> None:
        self._process.kill()
        self._dies(Death(cause, message, None))

    def _dies(self, death: Death) -> None:
        if not self._death.done():
            self._death.set_result(death)
