"""One question on its way: what `EngineClient.ask` gives back."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from runtime.captiond.asks import Ask, AskDelta, AskResult
from runtime.captiond.events import FrameFacts
from runtime.errors import VlmError


class Asked:
    """An answer while it is written: ``async for delta in asked``, then ``await asked.result()``.

    Deltas are read once, by one reader; they wait for it (an answer has at most as many as it has tokens). Whoever
    loses interest must ``cancel()``. The files of shared images stay open until ``result()`` has returned or raised.
    """

    def __init__(self, number: int, ask: Ask, deadline_ns: int, withdraw: Callable[[Asked], None]) -> None:
        self.number = number
        self.ask = ask
        self.deadline_ns = deadline_ns
        self.tokens = 0
        self.tries = 0
        self.cancelled = False
        self.overdue = False
        self._withdraw = withdraw
        self._deltas: deque[AskDelta] = deque()
        self._frame: FrameFacts | None = None
        self._place: tuple[int, int] | None = None
        self._begun = False
        self._result: AskResult | None = None
        self._error: VlmError | None = None
        self._waiters: list[asyncio.Future[None]] = []

    @property
    def place(self) -> tuple[int, int] | None:
        """(slot, generation) of the frame in its source's ring, where it stays until the answer ends."""
        return self._place

    @property
    def done(self) -> bool:
        """Whether ``result()`` would return, or raise, at once."""
        return self._result is not None or self._error is not None

    @property
    def frame(self) -> FrameFacts | None:
        """The frame that the engine took, once it began."""
        return self._frame

    @property
    def begun(self) -> bool:
        """Whether the engine has begun with it."""
        return self._begun

    async def started(self) -> FrameFacts | None:
        """Wait until the engine begins; the frame that it took.

        None for a question about no source, and for one that was cancelled before. Raises what ended it instead.
        """
        while not (self._begun or self.done):
            await self._change()
        if self._error is not None and not self._begun:
            raise self._error
        return self._frame

    async def result(self) -> AskResult:
        """Wait for the end. Raises the VlmError that the engine raised, or EngineError when the engine died."""
        while not self.done:
            await self._change()
        if self._error is not None:
            raise self._error
        assert self._result is not None
        return self._result

    def cancel(self) -> None:
        """End it within one token; the result keeps what was written, with finish_reason "cancelled". Idempotent."""
        if not (self.cancelled or self.done):
            self.cancelled = True
            self._withdraw(self)

    def __aiter__(self) -> Asked:
        return self

    async def __anext__(self) -> AskDelta:
        while not self._deltas:
            if self._error is not None:
                raise self._error
            if self._result is not None:
                raise StopAsyncIteration
            await self._change()
        return self._deltas.popleft()

    # ---- the client's side

    def begin(self, frame: FrameFacts | None, place: tuple[int, int] | None) -> None:
        """The engine has begun."""
        self._begun, self._frame, self._place = True, frame, place
        self._wake()

    def put(self, delta: AskDelta) -> None:
        """The engine wrote a token."""
        self.tokens = max(self.tokens, delta.index + 1)
        self._deltas.append(delta)
        self._wake()

    def finish(self, result: AskResult) -> None:
        """The engine came to the end."""
        if not self.done:
            self._result = result
            self._wake()

    def fail(self, error: VlmError) -> None:
        """It came to nothing."""
        if not self.done:
            self._error = error
            self._wake()

    async def _change(self) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(future)
        try:
            await future
        finally:
            if future in self._waiters:
                self._waiters.remove(future)

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for future in waiters:
            if not future.done():
                future.set_result(None)
