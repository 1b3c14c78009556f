"""What a source of frames is, and the base that the sources of this package share."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from types import TracebackType
from typing import Protocol

from runtime.errors import ClosedError
from runtime.types import Frame

_NS_PER_S = 1e9


class Source(Protocol):
    """Frames in order, each once: an iterator that is also a context manager.

    ``live``: frames come at a pace of their own and whoever is slow wants the newest one; otherwise each frame waits
    until it is taken. ``name``: the URI without credentials. Iteration ends with the source, and when another thread
    closes it.
    """

    @property
    def live(self) -> bool: ...

    @property
    def name(self) -> str: ...

    def __iter__(self) -> Iterator[Frame]: ...

    def __enter__(self) -> Source: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def close(self) -> None:
        """Stop and give back what the source holds; idempotent, from any thread."""
        ...


class Clock:
    """CLOCK_MONOTONIC and waiting on it; tests pass their own."""

    def now_ns(self) -> int:
        """The time in nanoseconds."""
        return time.monotonic_ns()

    def wait_until(self, t_ns: int, stop: threading.Event) -> None:
        """Return at ``t_ns``, or earlier when ``stop`` is set."""
        left_s = (t_ns - self.now_ns()) / _NS_PER_S
        if left_s > 0:
            stop.wait(left_s)


class FrameSource(ABC):
    """Base of sources: one `_next` per frame, closed at most once, never while a frame is being read."""

    def __init__(self, name: str, *, live: bool = False, clock: Clock | None = None) -> None:
        self._name = name
        self._live = live
        self._clock = clock or Clock()
        self._stop = threading.Event()
        self._reading = threading.Lock()
        self._released = False

    @property
    def live(self) -> bool:
        """Whether frames come at a pace of their own."""
        return self._live

    @property
    def name(self) -> str:
        """The URI without credentials."""
        return self._name

    @property
    def fps(self) -> float | None:
        """Frames per second, of sources with a fixed rate."""
        return None

    def __iter__(self) -> Iterator[Frame]:
        if self._stop.is_set():
            raise ClosedError(f"{self.name}: the source is closed", hint="open it again with open_source")
        return self

    def __next__(self) -> Frame:
        with self._reading:
            frame = None if self._stop.is_set() else self._next()
        if frame is None or self._stop.is_set():
            raise StopIteration
        return frame

    def __enter__(self) -> FrameSource:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop waiting, let a read that is under way end, release; idempotent, from any thread."""
        self._stop.set()
        with self._reading:
            if not self._released:
                self._released = True
                self._release()

    @abstractmethod
    def _next(self) -> Frame | None:
        """Read the next frame; None at the end."""

    def _release(self) -> None:  # noqa: B027 - most sources hold nothing
        """Give back files and handles; called once."""


class Pace:
    """When frame n of a source with a fixed rate is due, counted from its first frame."""

    def __init__(self, fps: float, clock: Clock) -> None:
        self._period_ns = _NS_PER_S / fps
        self._clock = clock
        self._start_ns: int | None = None
        self._count = 0

    def wait(self, stop: threading.Event) -> int:
        """Wait until the next frame is due and return the time."""
        if self._start_ns is None:
            self._start_ns = self._clock.now_ns()
        self._clock.wait_until(self._start_ns + round(self._count * self._period_ns), stop)
        self._count += 1
        return self._clock.now_ns()
