"""One child process that answers requests one at a time, started when needed, killed when it does not answer."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from runtime.captiond.clock import NS_PER_S, Clock
from runtime.errors import VlmError

if TYPE_CHECKING:
    from runtime.captiond.capture.launcher import Launcher
    from runtime.captiond.capture.messages import Message
    from runtime.captiond.capture.process import Child

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class PictureProcess:
    """A child of ``role``; `ask` starts it, ``greet`` is sent to each new one.

    A request without an answer in ``deadline_s``, or a child that dies, makes `ask` return None; the next request
    starts another child. Without a request for ``idle_s`` it is stopped.
    """

    def __init__(
        self,
        launcher: Launcher,
        role: str,
        clock: Clock,
        *,
        arguments: Mapping[str, object],
        deadline_s: float,
        idle_s: float,
        greet: Callable[[Child], None],
        gone: Callable[[], None],
    ) -> None:
        self.deaths = 0
        self.hangs = 0
        self._launcher = launcher
        self._role = role
        self._clock = clock
        self._arguments = {**arguments, "role": role}
        self._deadline_s = deadline_s
        self._idle_s = idle_s
        self._greet = greet
        self._gone = gone
        self._lock = asyncio.Lock()
        self._child: Child | None = None
        self._watchers: set[asyncio.Task[None]] = set()
        self._jobs: set[asyncio.Task[Message | None]] = set()
        self._answer: asyncio.Future[Message | None] | None = None
        self._number = 0
        self._used_ns = 0
        self._closed = False

    @property
    def pid(self) -> int | None:
        """The process id of the running child."""
        return None if self._child is None else self._child.pid

    def tell(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Send something that needs no answer, if a child runs (a new one is greeted anyway)."""
        if self._child is not None:
            self._child.send(message, fds)

    async def ask(self, message: Message, fds: Sequence[int] = ()) -> Message | None:
        """The answer to a request, or None when there is none. ``fds`` are closed when they have been sent.

        A caller that is cancelled does not disturb the child: the request is finished without it.
        """
        job = asyncio.ensure_future(self._ask(message, fds))
        self._jobs.add(job)
        job.add_done_callback(self._jobs.discard)
        job.add_done_callback(lambda _: _close(fds))
        return await asyncio.shield(job)

    async def close(self) -> None:
        """Kill the child and wait for it."""
        self._closed = True
        for job in list(self._jobs):
            job.cancel()
        await self._stop()
        if self._jobs or self._watchers:
            await asyncio.wait([*self._jobs, *self._watchers])

    async def _ask(self, message: Message, fds: Sequence[int]) -> Message | None:
        try:
            async with self._lock:
                if self._closed:
                    return None
                child = self._child or await self._start()
                self._number += 1
                self._used_ns = self._clock.now_ns()
                self._answer = asyncio.get_running_loop().create_future()
                child.send({**message, "id": self._number}, fds)
                answered, answer = await within(self._clock, self._answer, self._deadline_s)
                if not answered:
                    self.hangs += 1
                    _log.warning("pictures: %s took more than %g s; restarting", message["type"], self._deadline_s)
                    await self._stop()
                return answer
        except (VlmError, OSError) as error:
            _log.warning("pictures: the process %s cannot be started: %s", self._role, error)
            return None

    async def _start(self) -> Child:
        child = await self._launcher.launch_pictures(self._arguments)
        self._child = child
        self._used_ns = self._clock.now_ns()
        for watcher in (self._listen(child), self._watch_idle(child)):
            task = asyncio.ensure_future(watcher)
            self._watchers.add(task)
            task.add_done_callback(self._watchers.discard)
        self._greet(child)
        return child

    async def _listen(self, child: Child) -> None:
        async for message in child.messages():
            answer = self._answer
            if answer is not None and not answer.done() and message.get("id") == self._number:
                answer.set_result(message)
        await child.wait()
        if self._child is child:
            self.deaths += 1
            self._let_go()
            self._gone()
            _log.warning("pictures: the process %s died", self._role)

    async def _watch_idle(self, child: Child) -> None:
        while self._child is child:
            async with self._lock:
                idle_s = (self._clock.now_ns() - self._used_ns) / NS_PER_S
                if idle_s >= self._idle_s and self._child is child:
                    await self._stop()
            await self._clock.sleep(max(0.0, self._idle_s - idle_s))

    async def _stop(self) -> None:
        child = self._child
        if child is not None:
            self._let_go()
            child.kill()
            await child.wait()
            self._gone()
        if self._closed:
            for task in self._watchers:
                task.cancel()

    def _let_go(self) -> None:
        self._child = None
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(None)


def _close(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)


async def within(clock: Clock, future: asyncio.Future[_T], seconds: float) -> tuple[bool, _T | None]:
    """Wait for ``future`` for ``seconds`` of ``clock``: (True, its result), or (False, None)."""
    timer: asyncio.Future[None] = asyncio.ensure_future(clock.sleep(seconds))
    either: set[asyncio.Future[Any]] = {future, timer}
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    finally:
        timer.cancel()
    return (True, future.result()) if future.done() else (False, None)
