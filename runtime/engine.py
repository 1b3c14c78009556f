"""One owner thread for all engine work; whatever comes meanwhile waits in a short queue.

Engines are opened, used and closed on this thread alone, so that none of them needs a lock and a CUDA context has one
home. Used by `runtime.session`.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from runtime.errors import BusyError, UsageError
from runtime.text_stream import closed_error

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class Job(Protocol):
    """A piece of engine work."""

    def run(self, between: Callable[[], None]) -> None:
        """Do the work on the owner thread, calling ``between`` after each token; errors are the job's to hand over."""

    def stop(self) -> None:
        """Ask it to end within one token; any thread."""

    def refuse(self, error: Exception) -> None:
        """It will not run: tell whoever waits."""

    def over(self) -> bool:
        """Whether it need not begin any more; it has then told whoever waits."""


class Owner:
    """The thread and its queue: first come, first served, at most ``max_pending`` waiting."""

    def __init__(self, *, max_pending: int, name: str = "vlm-engine") -> None:
        if max_pending < 1:
            raise UsageError(f"max_pending is {max_pending}, the least is 1")
        self._max_pending = max_pending
        self._changed = threading.Condition()
        self._queue: deque[Job] = deque()
        self._running: Job | None = None
        self._closed = False
        self._at_exit: Callable[[], object] | None = None
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    @property
    def thread_id(self) -> int | None:
        """Identity of the owner thread, as `threading.get_ident` gives it there."""
        return self._thread.ident

    def submit(self, job: Job) -> None:
        """Queue a job. Raises BusyError when ``max_pending`` wait already, ClosedError after close."""
        with self._changed:
            if self._closed:
                raise closed_error()
            if len(self._queue) >= self._max_pending:
                self._sweep()
            if len(self._queue) >= self._max_pending:
                raise BusyError(
                    f"{len(self._queue)} requests wait already, the limit is {self._max_pending}",
                    hint="ask again later, or open the session with a larger max_pending",
                )
            self._queue.append(job)
            self._changed.notify_all()

    def sweep(self) -> None:
        """Drop jobs that need not begin any more: cancelled, or past their deadline while they waited."""
        with self._changed:
            self._sweep()

    def call(self, function: Callable[[], _T]) -> _T:
        """Run ``function`` on the owner thread, after the jobs that wait, and return or raise what it does."""
        call = _Call(function)
        with self._changed:  # not a request of a user: it may exceed max_pending
            if self._closed:
                raise closed_error()
            self._queue.append(call)
            self._changed.notify_all()
        return call.result()

    def at_exit(self, function: Callable[[], object]) -> None:
        """What the owner thread does last: closing the engines."""
        self._at_exit = function

    def request_stop(self) -> None:
        """End the running job within one token and refuse the others; does not wait. Safe from a finalizer."""
        with self._changed:
            self._closed = True
            if self._running is not None:
                self._running.stop()
            self._changed.notify_all()

    def close(self) -> None:
        """``request_stop``, then wait until the engines are closed. Idempotent; the owner thread does not wait."""
        self.request_stop()
        if threading.get_ident() != self._thread.ident:
            self._thread.join()

    def _work(self) -> None:
        while (job := self._next()) is not None:
            job.run(self.sweep)
            with self._changed:
                self._running = None
            del job  # an idle owner keeps nothing of the last request alive
        self._refuse_rest()
        if self._at_exit is not None:
            try:
                self._at_exit()
            except Exception:  # noqa: BLE001 - the thread ends here: nobody is left to hand it to
                _log.exception("closing the engines failed")

    def _next(self) -> Job | None:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._queue)
            if self._closed:
                return None
            self._running = self._queue.popleft()
            return self._running

    def _refuse_rest(self) -> None:
        with self._changed:
            rest = list(self._queue)
            self._queue.clear()
        for job in rest:
            job.refuse(closed_error())

    def _sweep(self) -> None:
        if self._queue:
            self._queue = deque(job for job in self._queue if not job.over())


class _Call(Generic[_T]):
    """A function as a job, with its result."""

    def __init__(self, function: Callable[[], _T]) -> None:
        self._function = function
        self._done = threading.Event()
        self._values: list[_T] = []
        self._error: BaseException | None = None

    def run(self, between: Callable[[], None]) -> None:
        try:
            self._values.append(self._function())
        except BaseException as error:  # noqa: BLE001 - handed over to the thread that called
            self._error = error
        self._done.set()

    def stop(self) -> None:
        """A call is short: it runs to its end."""

    def refuse(self, error: Exception) -> None:
        self._error = error
        self._done.set()

    def over(self) -> bool:
        return False

    def result(self) -> _T:
        self._done.wait()
        if self._error is not None:
            raise self._error
        return self._values[0]
