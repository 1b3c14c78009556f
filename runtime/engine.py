"""One owner thread for all engine work; whatever comes meanwhile waits in a short queue.

Engines are opened, used and closed on this thread alone, so that none of them needs a lock and a CUDA context has one
home. Several jobs may run at once: the thread gives each a unit of work in turn. Used by `runtime.session`.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from runtime.errors import BusyError, DeviceLostError, UsageError
from runtime.scheduling import Rota, Share
from runtime.text_stream import closed_error

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class Job(Protocol):
    """A piece of engine work, done unit by unit."""

    @property
    def share(self) -> Share:
        """What it gets of the engines among the others."""

    def step(self, alone: bool) -> bool:
        """One unit on the owner thread; False when that was the last. ``alone``: nobody else's comes next, it seems.

        Errors are the job's to hand over; a DeviceLostError is raised as well.
        """

    def stop(self) -> None:
        """Ask it to end within one unit; any thread."""

    def refuse(self, error: Exception) -> None:
        """It will not run any more: tell whoever waits."""

    def over(self) -> bool:
        """Whether it need not begin any more; it has then told whoever waits."""

    def ending(self) -> bool:
        """Whether its next unit is the last, because somebody stopped it or its time is up."""


class Owner:
    """The thread, at most ``parallel`` jobs that run, and at most ``max_pending`` that wait.

    Of those that wait the highest priority begins first, then whoever came first; whoever runs is not interrupted for
    good, but gets no unit while one of a higher priority runs.
    """

    def __init__(self, *, max_pending: int, parallel: int = 1, name: str = "vlm-engine") -> None:
        if max_pending < 1:
            raise UsageError(f"max_pending is {max_pending}, the least is 1")
        if parallel < 1:
            raise UsageError(f"parallel is {parallel}, the least is 1")
        self._max_pending = max_pending
        self._parallel = parallel
        self._changed = threading.Condition()
        self._queue: deque[Job] = deque()
        self._running: Rota[Job] = Rota()
        self._closed = False
        self._lost: tuple[str, str | None] | None = None
        self.units = 0  # done so far; any thread may look
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
            self._check_open()
            if self._waiting() >= self._max_pending:
                self._sweep()
            if self._waiting() >= self._max_pending:
                raise BusyError(
                    f"{self._waiting()} requests wait already, the limit is {self._max_pending}",
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
            self._check_open()
            self._queue.append(call)
            self._changed.notify_all()
        return call.result()

    def at_exit(self, function: Callable[[], object]) -> None:
        """What the owner thread does last: closing the engines."""
        self._at_exit = function

    def request_stop(self) -> None:
        """End running jobs within one unit each and refuse the others; does not wait. Safe from a finalizer."""
        with self._changed:
            self._closed = True
            for job in self._running:
                job.stop()
            self._changed.notify_all()

    def close(self) -> None:
        """``request_stop``, then wait until the engines are closed. Idempotent; the owner thread does not wait."""
        self.request_stop()
        if threading.get_ident() != self._thread.ident:
            self._thread.join()

    def _work(self) -> None:
        while (turn := self._next()) is not None:
            self._step(*turn)
            del turn  # an idle owner keeps nothing of the last request alive
        self._refuse_rest(closed_error)
        if self._at_exit is not None:
            try:
                self._at_exit()
            except Exception:  # noqa: BLE001 - the thread ends here: nobody is left to hand it to
                _log.exception("closing the engines failed")

    def _step(self, job: Job, alone: bool) -> None:
        """One unit of one job; an error that costs the engines their device ends the others too."""
        try:
            going = job.step(alone)
            self.units += 1
        except DeviceLostError as error:
            self._lost = (error.message, error.hint)
            going = False
        if going:
            return
        with self._changed:
            self._running.leave(job)
        if self._lost is not None:
            self._refuse_rest(self._lost_error)

    def _next(self) -> tuple[Job, bool] | None:
        """Whose unit comes next; None when there is none and never will be."""
        with self._changed:
            self._admit()
            while not len(self._running):
                if self._closed:
                    return None
                self._changed.wait()
                self._admit()
            if len(self._running) > 1:  # whoever is stopped only has to hear it: its place is free then
                ending = next((job for job in self._running if job.ending()), None)
                if ending is not None:
                    return ending, False
            return self._running.turn()

    def _admit(self) -> None:
        self._sweep()
        while not self._closed and self._queue and len(self._running) < self._parallel:
            job = max(self._queue, key=lambda job: job.share.priority)  # of equal ones the one that came first
            self._queue.remove(job)
            self._running.join(job, job.share)

    def _refuse_rest(self, error: Callable[[], Exception]) -> None:
        with self._changed:
            rest = [*self._running, *self._queue]
            for job in rest:
                self._running.leave(job)
            self._queue.clear()
        for job in rest:
            job.refuse(error())

    def _check_open(self) -> None:
        if self._closed:
            raise closed_error()
        if self._lost is not None:
            raise self._lost_error()

    def _lost_error(self) -> DeviceLostError:
        message, hint = self._lost or ("the device is lost", None)
        return DeviceLostError(message, hint=hint)

    def _waiting(self) -> int:
        """How many wait for a place: those behind the places that are free."""
        return len(self._queue) - (self._parallel - len(self._running))

    def _sweep(self) -> None:
        if self._queue:
            self._queue = deque(job for job in self._queue if not job.over())


class _Call(Generic[_T]):
    """A function as a job, with its result."""

    share = Share()

    def __init__(self, function: Callable[[], _T]) -> None:
        self._function = function
        self._done = threading.Event()
        self._values: list[_T] = []
        self._error: BaseException | None = None

    def step(self, alone: bool) -> bool:
        try:
            self._values.append(self._function())
        except BaseException as error:  # noqa: BLE001 - handed over to the thread that called
            self._error = error
        self._done.set()
        return False

    def stop(self) -> None:
        """A call is short: it runs to its end."""

    def refuse(self, error: Exception) -> None:
        self._error = error
        self._done.set()

    def over(self) -> bool:
        return False

    def ending(self) -> bool:
        return False

    def result(self) -> _T:
        self._done.wait()
        if self._error is not None:
            raise self._error
        return self._values[0]
