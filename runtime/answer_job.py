"""One answer as a job of the owner thread: runs the stages unit by unit and fills the mailbox of whoever asked."""

from __future__ import annotations

import logging
from collections.abc import Callable

from runtime.errors import DeadlineError, DeviceLostError
from runtime.pipeline import Units
from runtime.request import Request
from runtime.scheduling import Share
from runtime.slots import KvCache, SlotPool
from runtime.text_stream import Channel

_log = logging.getLogger(__name__)


class AnswerJob:
    """Runs ``stages(cache)`` for one request, with ``share`` of the engines.

    ``lend`` gives the KV cache, one of ``slots``, on the owner thread; ``commit`` is told of an answer. The slot is
    free again, and ``commit`` is through, before the reader hears of the end.
    """

    def __init__(
        self,
        request: Request,
        channel: Channel,
        stages: Callable[[KvCache], Units],
        *,
        share: Share,
        slots: SlotPool,
        lend: Callable[[], KvCache],
        commit: Callable[[Request], None],
    ) -> None:
        self.share = share
        self._request = request
        self._channel = channel
        self._stages = stages
        self._slots = slots
        self._lend = lend
        self._commit = commit
        self._cache: KvCache | None = None
        self._units: Units | None = None

    def step(self, alone: bool) -> bool:
        """One picture, one chunk of the prompt or one decoder step; False when the answer is over, or failed."""
        if self._units is None and self.over():
            return False
        try:
            if self._step(alone):
                return True
            self._commit(self._request)
            answer = self._request.answer()
            if self._cache is not None:
                self._slots.let_go(self._cache)
        except BaseException as error:
            self._give_up()
            self._channel.fail(error)
            if isinstance(error, DeviceLostError):
                raise
            return False
        self._channel.finish(answer)
        return False

    def stop(self) -> None:
        """End within one unit."""
        self._request.control.cancelled = True

    def refuse(self, error: Exception) -> None:
        """It will not run any more; owner thread."""
        self._give_up()
        self._channel.fail(error)

    def ending(self) -> bool:
        """Cancelled, or past its deadline."""
        return self._request.control.verdict() is not None

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

    def _step(self, alone: bool) -> bool:
        """The unit itself: whether there are more."""
        if self._units is None:
            self._cache = self._lend()
            self._slots.hold(self._cache)
            self._units = self._stages(self._cache)
        self._request.alone = alone
        try:
            deltas, going = next(self._units), True
        except StopIteration as end:
            deltas, going = end.value, False
        for delta in deltas:
            self._channel.put(delta)
        return going

    def _give_up(self) -> None:
        """After an error nothing is known of what the slot holds."""
        if self._units is not None:
            try:
                self._units.close()  # ends a sampling that is under way when the reader's callback failed
            except Exception:  # noqa: BLE001 - the first error is the one that is told
                _log.exception("ending an answer that failed")
        if self._cache is not None:
            self._slots.release(self._cache)
