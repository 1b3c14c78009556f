"""Keeps one source running: an attempt after the other, each in a child process of its own, for ever.

    runner = SourceRunner(settings, password, launcher, bus.publish, clock, random.Random())
    task = asyncio.create_task(runner.run())
    header = await runner.wait_frame(after_seq=-1)

States: connecting → live ⇄ no_signal, and ended for files that are over. Whoever changes a source's settings cancels
`run`, closes the runner and makes another one: nothing of a source is worth keeping when its settings change.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass

from runtime.captiond.capture.arrivals import Arrivals
from runtime.captiond.capture.attempt import Attempt, CaptureLauncher, End
from runtime.captiond.capture.backoff import Backoff
from runtime.captiond.capture.probe import Probe, SourceProbe
from runtime.captiond.capture.ring import FrameHeader, Ring
from runtime.captiond.capture.start import slot_bytes
from runtime.captiond.clock import NS_PER_S, Clock
from runtime.captiond.config.settings import SourceSettings
from runtime.captiond.events import Event, SourceChanged, SourceStatus
from runtime.errors import VlmError

PROBE_EVERY_S = 1.0
PROBE_TIMEOUT_S = 2.0
GOOD_S = 2.0
"""Seconds of frames after which a source counts as well again: its next wait is the shortest."""
_ONE_PICTURE_S = 5.0
"""Between two rounds of a loop of one picture."""
_DENIED = frozenset({"401", "403", "404"})


@dataclass(frozen=True, slots=True)
class SourceStats:
    """Counts since the runner was made. ``reconnects``: times that it delivered again after it had been lost.
    ``last_cause``: of its last loss. ``last_frame_ns``: when its newest frame came, CLOCK_MONOTONIC."""

    frames: int
    attempts: int
    reconnects: int
    stalls: int
    last_cause: str
    last_frame_ns: int | None
    fps: float


class SourceRunner:
    """One source of the daemon. ``publish`` gets a SourceChanged when status or cause change, not for each attempt."""

    def __init__(
        self,
        settings: SourceSettings,
        password: Callable[[], str | None],
        launcher: CaptureLauncher,
        publish: Callable[[Event], None],
        clock: Clock,
        rng: random.Random,
        probe: Probe | None = None,
    ) -> None:
        """``password`` is asked at each attempt, so that a new one in its file is taken. ``rng`` spreads the waits."""
        self.settings = settings
        self.ring = Ring.create(slot_bytes(settings))
        self._password, self._launcher, self._publish, self._clock = password, launcher, publish, clock
        self._probe = SourceProbe() if probe is None else probe
        self._backoff, self._arrivals = Backoff(rng), Arrivals(self.ring, clock, settings.every_frame)
        self._attempt: Attempt | None = None
        self._state = SourceChanged(settings.name, "connecting", "", "", 0, None)
        self._turn = asyncio.Event()
        self._attempts, self._tries, self._reconnects, self._stalls = 0, 0, 0, 0
        self._last_cause = ""

    # ---- what others see

    @property
    def status(self) -> SourceStatus:
        """In one word."""
        return self._state.status

    @property
    def state(self) -> SourceChanged:
        """The present state; while there is no signal its attempt and wait are newer than those of the last event."""
        return self._state

    @property
    def stats(self) -> SourceStats:
        """Counts and rates as they are now."""
        seen = self._arrivals
        fps = seen.fps if self.status == "live" else 0.0
        return SourceStats(
            seen.total, self._attempts, self._reconnects, self._stalls, self._last_cause, seen.last_ns, fps
        )

    def newest(self) -> FrameHeader | None:
        """The newest frame; None unless the source is live, or has ended and this was its last one."""
        return self.ring.newest() if self.status in ("live", "ended") else None

    async def wait_frame(self, after_seq: int = -1) -> FrameHeader:
        """The newest frame with a seq above ``after_seq``, however long it takes. With ``every_frame`` the source goes
        on when this is called: whoever waits is done with the frames up to ``after_seq``."""
        while True:
            header, turn = self.newest(), self._turn
            if header is not None and header.seq > after_seq:
                return header
            if self._attempt is not None:
                self._attempt.want(after_seq)
            await turn.wait()

    def close(self) -> None:
        """Give the memory of the frames back, after `run` has ended. Idempotent."""
        self.ring.close()

    # ---- the life of a source

    async def run(self) -> None:
        """Attempt after attempt until cancelled; returns when a file or a glob is at its end and is not to loop."""
        self._tell("connecting", "", "")
        answered = False
        while True:
            self._attempts += 1
            self._tries += 1
            end = await self._try_once(answered)
            if end.over and not self.settings.loop:
                self._tell("ended", "", "")
                return
            answered = await self._rest(end, self._lost(end))

    async def _try_once(self, answered: bool) -> End:
        """``answered``: it did so just now, and some servers stumble over one more question."""
        self._arrivals.begin(self.settings.open_timeout_s)
        try:
            password = self._password()
            if not answered:
                await self._ask(password)
        except VlmError as problem:
            return End.of(problem, away=True)
        self._arrivals.begin(self.settings.open_timeout_s)
        self._attempt = Attempt(self.settings, self._launcher, self._arrivals, self._clock, self._on_frames)
        try:
            return await self._attempt.run(self.ring, password)
        finally:
            self._attempt = None

    async def _ask(self, password: str | None) -> None:
        """Raise VlmError when the source does not answer at all, or says no."""
        await self._probe(self.settings, password, min(PROBE_TIMEOUT_S, self.settings.open_timeout_s))

    def _on_frames(self) -> None:
        if self.status != "live":
            if self.status == "no_signal" and self._arrivals.total > self._arrivals.of_attempt:
                self._reconnects += 1
            self._tell("live", "", "")
            self._tries = 0
            self._backoff.seen()
        turn, self._turn = self._turn, asyncio.Event()
        turn.set()

    def _lost(self, end: End) -> float:
        """No signal from now on: no frame is the newest any more. Returns the seconds until the next attempt."""
        if end.over:
            return 0.0 if self._arrivals.good_s else _ONE_PICTURE_S
        self.ring.invalidate()
        if end.cause == "stalled":
            self._stalls += 1
        if self._arrivals.good_s >= GOOD_S:
            self._backoff.reset()
        self._last_cause = end.cause
        wait_s = self._backoff.next_s(unseen=not self._arrivals.total or end.cause in _DENIED)
        self._tell("no_signal", end.cause, end.message, wait_s)
        return wait_s

    async def _rest(self, end: End, seconds: float) -> bool:
        """Wait; a source that delivered before and is away is asked each second, and tried as soon as it answers: then
        the result is True."""
        until_ns = self._clock.now_ns() + round(seconds * NS_PER_S)
        away = end.away and self._arrivals.total > 0 and end.cause not in _DENIED
        while (left_s := (until_ns - self._clock.now_ns()) / NS_PER_S) > 0:
            await self._clock.sleep(min(left_s, PROBE_EVERY_S) if away else left_s)
            if away and left_s > PROBE_EVERY_S and await self._answers():
                return True
        return False

    async def _answers(self) -> bool:
        try:
            await self._ask(self._password())
        except VlmError:
            return False
        return True

    def _tell(self, status: SourceStatus, cause: str, message: str, retry_in_s: float | None = None) -> None:
        before = self._state
        self._state = SourceChanged(self.settings.name, status, cause, message, self._tries, retry_in_s)
        if (status, cause) != (before.status, before.cause) or not self._attempts:
            self._publish(self._state)
        if status != before.status:
            turn, self._turn = self._turn, asyncio.Event()
            turn.set()
