"""Tasks that must not stay dead: each is started again when it fails, with the reason in the log."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from runtime.captiond.clock import Clock
from runtime.captiond.events import Event, Notice

_log = logging.getLogger(__name__)
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 30.0
_GOOD_S = 60.0


class Keeper:
    """Runs named coroutines until they return or `close` ends them.

    A failure is our own bug: it is logged with its traceback, published as a notice, and the coroutine begins again
    after a pause that doubles from 0.5 s to 30 s, and is short again after a good minute.
    """

    def __init__(self, publish: Callable[[Event], None], clock: Clock) -> None:
        self._publish = publish
        self._clock = clock
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self.failures = 0

    def keep(self, name: str, work: Callable[[], Awaitable[object]]) -> None:
        """Run ``work()`` under a name that no running task has."""
        assert name not in self._tasks or self._tasks[name].done(), f"{name} runs already"
        self._tasks[name] = asyncio.get_running_loop().create_task(self._run(name, work), name=name)

    async def stop(self, name: str) -> None:
        """Cancel one of them and wait until it has ended; nothing when there is none of that name."""
        task = self._tasks.pop(name, None)
        if task is not None:
            await _ended([task])

    async def close(self) -> None:
        """Cancel all of them and wait until they have ended."""
        tasks = list(self._tasks.values())
        self._tasks.clear()
        await _ended(tasks)

    async def _run(self, name: str, work: Callable[[], Awaitable[object]]) -> None:
        wait_s = _FIRST_WAIT_S
        while True:
            begun_ns = self._clock.now_ns()
            try:
                await work()
                return
            except Exception as error:  # noqa: BLE001 - our own bug: logged with its traceback, and begun again
                self.failures += 1
                _log.exception("%s failed; it begins again in %g s", name, wait_s)
                self._publish(Notice("error", name, f"{type(error).__name__}: {error}"))
            if self._clock.now_ns() - begun_ns > _GOOD_S * 1e9:
                wait_s = _FIRST_WAIT_S
            await self._clock.sleep(wait_s)
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)


async def _ended(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
