"""Frames of a capture child on their way: checked, scaled, put into the ring, told to the daemon."""

from __future__ import annotations

import socket
import time
from typing import Any

import numpy as np

from runtime.captiond.capture import messages
from runtime.captiond.capture.failures import CaptureFailed
from runtime.captiond.capture.plan import Plan
from runtime.captiond.capture.ring import Kind, Ring

_SAY_S = 5
_FULL_S = 0.005
_MAX_STAMP_AGE_NS = 5_000_000_000


class Delivery:
    """Where a child's frames go. ``delivered`` counts them; ``is_open``: `opened` was said."""

    def __init__(self, sock: socket.socket, ring: Ring, plan: Plan, cv2: Any) -> None:
        self._sock = sock
        self._ring = ring
        self._plan = plan
        self._cv2 = cv2
        self.delivered = 0
        self.is_open = False
        messages.patient(sock, _SAY_S)

    def opened(self, width: int, height: int, fps: float | None, what: str) -> None:
        """Say that the source is open. Raises CaptureFailed for frames above the limit."""
        self.check_size(width, height)
        self.is_open = True
        self.say({"type": "opened", "width": width, "height": height, "fps": fps, "what": what})

    def check_size(self, width: int, height: int) -> None:
        """Raises CaptureFailed ("too_large") above the source's ``max_pixels``."""
        if width * height > self._plan.max_pixels:
            raise CaptureFailed(
                "too_large",
                f"frames of {width}x{height} px, the limit is {self._plan.max_pixels:,} pixels",
                hint="set max_pixels of this source, or have the camera send smaller frames",
            )

    def deliver(self, picture: Any, *, bgr: bool, t_capture_ns: int, kind: Kind) -> None:
        """Publish a frame u8 [height, width, 3]; larger sides than ``max_side_px`` are scaled down by area.

        With ``every_frame`` it waits for a free slot, and then until the daemon asks for the next one.
        """
        height, width = picture.shape[:2]
        self.check_size(width, height)
        longer = max(width, height)
        if longer > self._plan.max_side_px:
            scale = self._plan.max_side_px / longer
            width, height = (max(1, round(side * scale)) for side in (width, height))
            picture = self._cv2.resize(picture, (width, height), interpolation=self._cv2.INTER_AREA)
        seq = self._plan.first_seq + self.delivered
        place = self._place(3 * width * height)
        if place is not None:
            with place:
                shared = np.frombuffer(place, np.uint8).reshape(height, width, 3)
                if bgr:
                    self._cv2.cvtColor(picture, self._cv2.COLOR_BGR2RGB, dst=shared)
                else:
                    np.copyto(shared, picture)
                del shared
            self._ring.commit(width, height, seq, t_capture_ns, kind)
            self._tell(seq, t_capture_ns)
        self.delivered += 1
        if self._plan.every_frame:
            self._wait_next()

    def say(self, message: messages.Message) -> None:
        """Say something that must not be lost; gives up after 5 s."""
        messages.send(self._sock, message)

    def _place(self, nbytes: int) -> memoryview | None:
        place = self._ring.begin(nbytes)
        while place is None and self._plan.every_frame:
            time.sleep(_FULL_S)
            place = self._ring.begin(nbytes)
        return place

    def _tell(self, seq: int, t_capture_ns: int) -> None:
        """Say that there is a frame; nobody waits when the daemon is slow, it finds the frame in the ring."""
        flags = 0 if self._plan.every_frame else socket.MSG_DONTWAIT
        try:
            messages.send(self._sock, {"type": "frame", "seq": seq, "t_capture_ns": t_capture_ns}, (), flags)
        except BlockingIOError:
            return

    def _wait_next(self) -> None:
        received = messages.receive(self._sock)
        if received is None:
            raise CaptureFailed("closed", "the daemon is gone")


def stamped(driver_ns: float) -> tuple[int, Kind]:
    """The time of a frame: what the driver says if it can be true, on CLOCK_MONOTONIC, else now."""
    now = time.monotonic_ns()
    if now - _MAX_STAMP_AGE_NS <= driver_ns <= now:
        return int(driver_ns), "exposure"
    return now, "arrival"
