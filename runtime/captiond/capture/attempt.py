"""One attempt at a source: one child process, from its launch to its end, whatever that is."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from runtime.captiond.capture.arrivals import LOOK_EVERY_S, Arrivals
from runtime.captiond.capture.ring import Ring
from runtime.captiond.capture.start import scheme_of, without_userinfo
from runtime.captiond.capture.waiting import end_tasks, within
from runtime.captiond.clock import Clock
from runtime.captiond.config.settings import SourceSettings
from runtime.captiond.text import one_line, redacted
from runtime.errors import VlmError

_PARTING_S = 2.0
"""Seconds for a child that was killed to be gone, and for the last words of one that went by itself."""
_ENDLESS = ("rtsp", "rtsps", "http", "https", "v4l2", "csi", "gst")
_CAUSE = re.compile(r"[a-z0-9_]{1,32}")
_MESSAGE_CHARS = 300


class CaptureChild(Protocol):
    """A process that tries a source once. After `wait` has returned nothing of it is left open."""

    @property
    def pid(self) -> int:
        """Its number."""

    def messages(self) -> AsyncIterator[dict[str, object]]:
        """What it says (opened, frame, ended, failed), until it is gone."""

    def send(self, message: Mapping[str, object]) -> None:
        """Tell it something. Raises OSError when it is gone or does not listen."""

    def kill(self, signal: int = signal.SIGKILL) -> None:
        """Send a signal; nothing happens when it is gone."""

    async def wait(self) -> int:
        """Its exit status, or minus the signal that ended it; may be asked several times at once."""


class CaptureLauncher(Protocol):
    """Starts capture processes."""

    async def launch_capture(
        self, source: SourceSettings, password: str | None, ring: Ring, first_seq: int
    ) -> CaptureChild:
        """Start one attempt, which writes frames from ``first_seq`` on into ``ring``."""


@dataclass(frozen=True, slots=True)
class End:
    """How an attempt ended. ``over``: the file is at its end. ``away``: nothing was launched, it is not there."""

    cause: str
    message: str
    over: bool = False
    away: bool = False

    @classmethod
    def of(cls, problem: VlmError | OSError, secrets: Sequence[str] = (), away: bool = False) -> End:
        """The end that an error stands for; its ``cause`` when it has one."""
        return cls(_cause(getattr(problem, "cause", "failed")), shown(str(problem), secrets), away=away)


class Attempt:
    """Launches a child, listens to it, misses its frames, and buries it. Used once."""

    def __init__(
        self,
        settings: SourceSettings,
        launcher: CaptureLauncher,
        arrivals: Arrivals,
        clock: Clock,
        on_frames: Callable[[], None],
    ) -> None:
        self._settings, self._launcher, self._arrivals, self._clock = settings, launcher, arrivals, clock
        self._on_frames = on_frames
        self._secrets: tuple[str, ...] = ()
        self._child: CaptureChild | None = None

    async def run(self, ring: Ring, password: str | None) -> End:
        """Returns when the attempt is over and its process gone; a cancelled one ends its process too."""
        self._secrets = tuple(filter(None, (password, without_userinfo(self._settings.uri)[2])))
        try:
            child = self._child = await self._launch(ring, password)
        except TimeoutError:
            return End("launch", f"no capture process within {self._settings.open_timeout_s:g} s")
        except (VlmError, OSError) as problem:
            return End.of(problem, self._secrets)
        try:
            return await self._watch(child)
        finally:
            await self._bury(child)

    def want(self, after_seq: int) -> None:
        """A reader is done with ``after_seq``: a source that gives every frame goes on with the next."""
        if self._child is not None and self._arrivals.want(after_seq):
            with contextlib.suppress(OSError):  # it is gone: `run` notices
                self._child.send({"type": "next"})

    async def _launch(self, ring: Ring, password: str | None) -> CaptureChild:
        first_seq = self._arrivals.last_seq + 1
        launch = self._launcher.launch_capture(self._settings, password, ring, first_seq)
        task = asyncio.ensure_future(launch)
        try:
            return await within(self._clock, self._settings.open_timeout_s, task)
        except BaseException:
            if task.done() and not task.cancelled() and task.exception() is None:  # launched, and given up just then
                await self._bury(task.result())
            raise

    async def _bury(self, child: CaptureChild) -> None:
        """End a child, whatever state it is in, and take in what it wrote last."""
        child.kill()
        with contextlib.suppress(
            TimeoutError
        ):  # in a driver's hands: it dies when that lets go, before it writes again
            await within(self._clock, _PARTING_S, child.wait())
        self._look()

    async def _watch(self, child: CaptureChild) -> End:
        words = asyncio.ensure_future(self._listen(child))
        gone = asyncio.ensure_future(child.wait())
        silence = asyncio.ensure_future(self._silence())
        try:
            await asyncio.wait({words, gone, silence}, return_when=asyncio.FIRST_COMPLETED)
            if silence.done():
                return silence.result()
            return await self._last_words(words, gone)
        finally:
            await end_tasks(words, gone, silence)

    async def _last_words(self, words: asyncio.Future[End | None], gone: asyncio.Future[int]) -> End:
        """Why a child ended: by its own word, else by its exit status."""
        try:
            said = await within(self._clock, _PARTING_S, asyncio.shield(words))
            return said or _by_status(await within(self._clock, _PARTING_S, asyncio.shield(gone)))
        except TimeoutError:
            return _by_status(gone.result()) if gone.done() else End("exited", "the capture process hung up")

    async def _listen(self, child: CaptureChild) -> End | None:
        """Take in what the child says until it says why it ends; None when it goes without a word."""
        async for message in child.messages():
            kind = message.get("type")
            if kind == "opened":
                fps = message.get("fps")
                self._arrivals.declare(float(fps) if isinstance(fps, (int, float)) else 0.0)
            elif kind == "frame":
                self._look()
            elif kind == "ended":
                self._look()
                endless = scheme_of(self._settings.uri) in _ENDLESS
                return End("closed", "the source ended") if endless else End("ended", "", over=True)
            elif kind == "failed":
                return End(_cause(message.get("cause")), shown(str(message.get("message", "")), self._secrets))
        return None

    async def _silence(self) -> End:
        """Return when no first frame has come in time, or no further one."""
        while True:
            self._look()
            due_s = self._arrivals.due_s()
            if due_s <= 0:
                break
            await self._clock.sleep(min(due_s, LOOK_EVERY_S))
        silence_s = self._arrivals.silence_s
        self._arrivals.died()
        if not self._arrivals.of_attempt:
            return End("timeout", f"no frame within {silence_s:.1f} s")
        return End("stalled", f"no frame for {silence_s:.1f} s")

    def _look(self) -> None:
        if self._arrivals.look():
            self._on_frames()


def shown(message: str, secrets: Sequence[str]) -> str:
    """A message of a peer or a child, without credentials, on one line of 300 characters."""
    for secret in secrets:
        message = message.replace(secret, "***")
    return one_line(redacted(message), _MESSAGE_CHARS)


def _cause(given: object) -> str:
    return given if isinstance(given, str) and _CAUSE.fullmatch(given) else "failed"


def _by_status(status: int) -> End:
    if status >= 0:
        return End("exited", f"the capture process ended with status {status}")
    name = signal.Signals(-status).name if -status in signal.valid_signals() else str(-status)
    return End("killed" if -status == signal.SIGKILL else "crashed", f"the capture process was ended by {name}")
