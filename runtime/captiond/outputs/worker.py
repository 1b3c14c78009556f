"""A thread for calls that may block for ever: a write into a full pipe, a dead disk, a name that does not resolve."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import TypeVar, cast

_T = TypeVar("_T")
_Job = Callable[[], None]


class Worker:
    """Runs one call after the other in a daemon thread, which a process that ends does not wait for.

    The executors of the standard library will not do: they are joined at exit, so that one stuck write would keep the
    process from ending. The thread is started by the first call.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    async def run(self, call: Callable[[], _T]) -> _T:
        """What ``call()`` returns or raises. It goes on when the caller is cancelled; then its result is lost."""
        loop = asyncio.get_running_loop()
        result: asyncio.Future[_T] = loop.create_future()

        def settle(value: _T | None, error: Exception | None) -> None:
            if result.done():
                return
            if error is None:
                result.set_result(cast(_T, value))
            else:
                result.set_exception(error)

        def job() -> None:
            value, problem = None, None
            try:
                value = call()
            except Exception as error:  # noqa: BLE001 - top of a thread: the error goes to whoever asked
                problem = error
            with suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(settle, value, problem)

        if self._thread is None:
            self._thread = threading.Thread(target=_work, args=(self._jobs,), name=self._name, daemon=True)
            self._thread.start()
        self._jobs.put(job)
        return await result

    def close(self) -> None:
        """Let the thread end after the calls that it was given."""
        if self._thread is not None:
            self._jobs.put(None)
            self._thread = None


def _work(jobs: SimpleQueue[_Job | None]) -> None:
    while (job := jobs.get()) is not None:
        job()
