"""Deltas of one answer on their way from the owner thread to whoever reads them: a loop, an event loop, or a callback.

`Channel` is the mailbox that the owner thread fills; `TextStream` is what the caller holds. The mailbox never knows its
reader, so that a stream which nobody holds any more is collected, and its request cancelled.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType

from runtime.errors import ClosedError, DeadlineError, UsageError
from runtime.types import Answer, Delta, FinishReason

_Waiter = tuple[asyncio.AbstractEventLoop, "asyncio.Future[None]"]


class Control:
    """What may end a request early: its reader's wish, or its deadline (CLOCK_MONOTONIC ns)."""

    def __init__(self, deadline_ns: int | None = None) -> None:
        self.cancelled = False
        self._deadline_ns = deadline_ns

    def verdict(self) -> FinishReason | None:
        """Why to stop now, or None."""
        if self.cancelled:
            return "cancelled"
        if self._deadline_ns is not None and time.monotonic_ns() >= self._deadline_ns:
            return "deadline"
        return None


class Channel:
    """Mailbox of one request. ``put``, ``finish`` and ``fail`` belong to the owner thread, the rest to any thread.

    It holds at most as many deltas as the answer has tokens, whether they are read or not.
    """

    def __init__(
        self,
        control: Control,
        on_delta: Callable[[Delta], object] | None = None,
        *,
        owner_thread: int | None = None,
    ) -> None:
        self.control = control
        self.on_delta = on_delta
        self.first_t_ns: int | None = None
        self.last_t_ns: int | None = None
        self._owner_thread = owner_thread
        self._error_read = False
        self._changed = threading.Condition()
        self._deltas: deque[Delta] = deque()
        self._answer: Answer | None = None
        self._error: BaseException | None = None
        self._waiters: list[_Waiter] = []

    @property
    def done(self) -> bool:
        """Whether the answer, or the error, is there."""
        return self._answer is not None or self._error is not None

    def put(self, delta: Delta) -> None:
        """Hand a delta to the reader; an exception of the callback ends the request."""
        if self.first_t_ns is None:
            self.first_t_ns = delta.t_ns
        self.last_t_ns = delta.t_ns
        if self.on_delta is not None:
            self.on_delta(delta)
            return
        with self._changed:
            self._deltas.append(delta)
        self._wake()

    def finish(self, answer: Answer) -> None:
        """The last thing of a request that went well."""
        with self._changed:
            self._answer = answer
        self._wake()

    def fail(self, error: BaseException) -> None:
        """The last thing of a request that did not; readers get ``error`` raised after the deltas that came before."""
        with self._changed:
            if not self.done:
                self._error = error
        self._wake()

    def take(self, loop: asyncio.AbstractEventLoop | None = None) -> Delta | asyncio.Future[None] | None:
        """The next delta; None after the last; with ``loop``, a future that resolves when there may be one."""
        with self._changed:
            while True:
                if self._deltas:
                    return self._deltas.popleft()
                if self.done:
                    self._raise_error()
                    return None
                if loop is not None:
                    future: asyncio.Future[None] = loop.create_future()
                    self._waiters.append((loop, future))
                    return future
                self._refuse_own_thread()
                self._changed.wait()

    def wait(self, timeout_s: float | None = None) -> Answer:
        """Block until the answer is there. Raises what ended the request, or DeadlineError after ``timeout_s``."""
        with self._changed:
            if not self.done:
                self._refuse_own_thread()
            if not self._changed.wait_for(lambda: self.done, timeout_s):
                raise DeadlineError(f"no answer within {timeout_s} s", hint="the request goes on: cancel() ends it")
            return self.result()

    def settle(self) -> None:
        """Block until the request is done; raise its error if nobody has read it yet."""
        with self._changed:
            if not self.done:
                self._refuse_own_thread()
            self._changed.wait_for(lambda: self.done)
            if not self._error_read:
                self._raise_error()

    def result(self) -> Answer:
        """The answer of a request that is done."""
        self._raise_error()
        if self._answer is None:
            raise UsageError("the answer is not finished", hint="answer() waits for it")
        return self._answer

    def waiter(self, loop: asyncio.AbstractEventLoop) -> asyncio.Future[None] | None:
        """A future that resolves at the next change; None when the request is done."""
        with self._changed:
            if self.done:
                return None
            future: asyncio.Future[None] = loop.create_future()
            self._waiters.append((loop, future))
            return future

    def _raise_error(self) -> None:
        if self._error is not None:
            self._error_read = True
            raise self._error

    def _refuse_own_thread(self) -> None:
        if threading.get_ident() == self._owner_thread:
            raise UsageError(
                "waiting for an answer on the thread that makes it would wait for ever",
                hint="a callback must not wait: hand the work to another thread",
            )

    def _wake(self) -> None:
        with self._changed:
            waiters, self._waiters = self._waiters, []
            self._changed.notify_all()
        for loop, future in waiters:
            try:
                loop.call_soon_threadsafe(_resolve, future)
            except RuntimeError:  # the loop is closed: nobody waits there any more
                continue


class TextStream:
    """An answer while it is written. Made by `Session.stream`, `Chat.stream` and `Caption`.

    Three ways to read it, each token once: ``for delta in stream``, ``async for delta in stream`` (any running event
    loop; nothing polls), or a callback given to ``stream(on_delta=…)``, called on the session's own thread.
    ``answer()`` waits for the whole. A delta carries one token; a last one may repeat its index with text that had
    been held back. As a context manager it cancels on leaving. A stream that nobody holds any more cancels itself,
    unless it has a callback.
    """

    def __init__(self, channel: Channel, withdraw: Callable[[], object], keep: object = None) -> None:
        self._channel = channel
        self._withdraw = withdraw
        self._keep = keep  # the session lives as long as somebody reads from it

    @property
    def done(self) -> bool:
        """Whether ``answer()`` would return at once."""
        return self._channel.done

    @property
    def first_t_ns(self) -> int | None:
        """When the first delta was ready (CLOCK_MONOTONIC); None before that."""
        return self._channel.first_t_ns

    @property
    def last_t_ns(self) -> int | None:
        """When the last delta so far was ready (CLOCK_MONOTONIC); None before the first."""
        return self._channel.last_t_ns

    def cancel(self) -> None:
        """End the answer within one token; it keeps what was written, with finish_reason "cancelled". Idempotent."""
        self._channel.control.cancelled = True
        self._withdraw()

    def answer(self, timeout_s: float | None = None) -> Answer:
        """Wait for the end and return the answer, or raise what ended the request.

        Raises DeadlineError when ``timeout_s`` passes first; the request itself goes on.
        """
        return self._channel.wait(timeout_s)

    def settle(self) -> None:
        """Wait for the end; raises what ended the request only if no reader was told yet."""
        self._channel.settle()

    async def answer_async(self) -> Answer:
        """``answer()`` for an event loop."""
        loop = asyncio.get_running_loop()
        while (waiter := self._channel.waiter(loop)) is not None:
            await waiter
        return self._channel.result()

    def __iter__(self) -> TextStream:
        return self

    def __next__(self) -> Delta:
        delta = self._channel.take()
        if isinstance(delta, Delta):
            return delta
        raise StopIteration

    def __aiter__(self) -> TextStream:
        return self

    async def __anext__(self) -> Delta:
        loop = asyncio.get_running_loop()
        while True:
            delta = self._channel.take(loop)
            if isinstance(delta, Delta):
                return delta
            if delta is None:
                raise StopAsyncIteration
            await delta

    def __enter__(self) -> TextStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()

    async def __aenter__(self) -> TextStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()

    def __del__(self) -> None:
        # A flag and nothing else: the collector may run anywhere, also where a lock is held.
        channel = getattr(self, "_channel", None)
        if channel is not None and channel.on_delta is None:
            channel.control.cancelled = True


def closed_error() -> ClosedError:
    """What a request gets that came, or waited, while its session was closed."""
    return ClosedError("the session is closed", hint="open another one: Session.open(bundle)")


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
