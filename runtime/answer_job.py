"""One answer as a job of the owner thread: runs the stages and fills the mailbox of whoever asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from runtime.errors import DeadlineError
from runtime.pipeline import Request
from runtime.slots import KvCache
from runtime.text_stream import Channel
from runtime.types import Delta


class AnswerJob:
    """Runs ``stages(cache)`` for one request.

    ``lend`` gives the KV cache on the owner thread; ``commit`` is told of an answer, ``fail`` of a request whose cache
    is in no known state. Both come before the reader hears of the end.
    """

    def __init__(
        self,
        request: Request,
        channel: Channel,
        stages: Callable[[KvCache], Iterator[Delta]],
        *,
        lend: Callable[[], KvCache],
        commit: Callable[[Request], None],
        fail: Callable[[KvCache], None],
    ) -> None:
        self._request = request
        self._channel = channel
        self._stages = stages
        self._lend = lend
        self._commit = commit
        self._fail = fail

    def run(self, between: Callable[[], None]) -> None:
        """The whole answer, token by token."""
        if self.over():
            return
        cache: KvCache | None = None
        try:
            cache = self._lend()
            for delta in self._stages(cache):
                self._channel.put(delta)
                between()
            answer = self._request.answer()
            self._commit(self._request)
        except BaseException as error:  # noqa: BLE001 - handed over to whoever waits for the answer
            if cache is not None:
                self._fail(cache)
            self._channel.fail(error)
            return
        self._channel.finish(answer)

    def stop(self) -> None:
        """End within one token."""
        self._request.control.cancelled = True

    def refuse(self, error: Exception) -> None:
        """It will not run."""
        self._channel.fail(error)

    def over(self) -> bool:
        """Cancelled, or past its deadline, before it began."""
        verdict = self._request.control.verdict()
        if verdict is None:
            return False
        if verdict == "deadline":
            hint = "allow a longer deadline_s; other requests were running"
            self._channel.fail(DeadlineError("the deadline passed while the request waited", hint=hint))
        else:
            self._request.finish_reason = "cancelled"
            self._channel.finish(self._request.answer())
        return True
