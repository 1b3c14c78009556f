"""The frames of one source as they come: counted, timed, and missed when they stay away."""

from __future__ import annotations

import math

from runtime.captiond.capture.cadence import Cadence
from runtime.captiond.capture.ring import Ring
from runtime.captiond.clock import NS_PER_S, Clock

LOOK_EVERY_S = 0.5
_MOST_STEP = 1_000_000
"""A seq further ahead than this was not counted by a capture process in its right mind."""
_FEW = 5
_PATIENCE_S = 3.0
_SLOWER = 3
"""A source that delivered before has 3 s for its first frame, or 3 times the longest that it ever took."""


class Arrivals:
    """What the ring says of a source's frames. Seq numbers go on over attempts.

    The ring and not the messages of a child is the truth: those may be dropped, or still be on their way.
    """

    def __init__(self, ring: Ring, clock: Clock, stepped: bool = False) -> None:
        """``stepped``: the source waits after each frame until the next one is wanted."""
        self._ring, self._clock, self._stepped = ring, clock, stepped
        self._cadence = Cadence()
        self._looked_ns = self._first_ns = self._since_ns = clock.now_ns()
        self._open_timeout_s = self._patience_s = 0.0
        self._slowest_s, self._too_short = 0.0, 0
        self._held = False
        self.last_seq = -1
        self.total = 0
        self.of_attempt = 0
        self.last_ns: int | None = None

    def begin(self, open_timeout_s: float) -> None:
        """Another attempt, whose first frame has ``open_timeout_s`` from now; less if the source is known as quicker,
        so that a session that hangs is soon replaced. What turns out too short is doubled."""
        self._looked_ns = self._first_ns = self._since_ns = self._clock.now_ns()
        known_s = max(_PATIENCE_S, _SLOWER * self._slowest_s) * 2 ** min(self._too_short, 10)
        self._open_timeout_s = open_timeout_s
        self._patience_s = min(open_timeout_s, known_s) if self.total else open_timeout_s
        self._held = False
        self.of_attempt = 0
        self._cadence.begin()

    def declare(self, fps: float) -> None:
        """The frame rate that the source claims to have."""
        self._cadence.declare(fps)

    def look(self) -> bool:
        """Take in what is new. True when a frame has come since the last look."""
        header, now_ns = self._ring.newest(), self._clock.now_ns()
        before_ns, self._looked_ns = self._looked_ns, now_ns
        if header is None or not self.last_seq < header.seq <= self.last_seq + _MOST_STEP:
            return False
        # A camera's own time may be anything; a frame that is new now came after the last look.
        came_ns = min(max(header.t_capture_ns, before_ns), now_ns)
        frames = header.seq - self.last_seq
        self._cadence.note(came_ns, frames)
        if not self.of_attempt:
            self._slowest_s = max(self._slowest_s, (came_ns - self._first_ns) / NS_PER_S)
            self._first_ns, self._too_short = came_ns, 0
        self.last_seq, self.last_ns = header.seq, came_ns
        self._since_ns, self._held = came_ns, self._stepped
        self.total += frames
        self.of_attempt += frames
        return True

    @property
    def fps(self) -> float:
        """Frames per second, of late."""
        return self._cadence.fps

    @property
    def good_s(self) -> float:
        """Seconds from the first frame of this attempt to its last."""
        return (self.last_ns - self._first_ns) / NS_PER_S if self.of_attempt and self.last_ns is not None else 0.0

    @property
    def silence_s(self) -> float:
        """Seconds without a frame that end an attempt, at its present stage."""
        if not self.of_attempt:
            return self._patience_s
        if self._stepped:
            return self._open_timeout_s
        return self._cadence.stall_after_s(self._open_timeout_s)

    def due_s(self) -> float:
        """Seconds that may still pass without a frame; 0 or less: the source is dead."""
        if self._held:
            return math.inf
        return self.silence_s - (self._clock.now_ns() - self._since_ns) / NS_PER_S

    def want(self, after_seq: int) -> bool:
        """A reader is done with ``after_seq``. True when the source must be told to go on."""
        if not self._held or self.last_seq > after_seq:
            return False
        self._since_ns, self._held = self._clock.now_ns(), False
        return True

    def died(self) -> None:
        """The source fell silent. Without a frame, or after a few only, it was perhaps misjudged."""
        if not self.of_attempt:
            self._too_short += 1
        elif self.of_attempt < _FEW:
            self._cadence.forget()
