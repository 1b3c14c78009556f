"""One attempt at one source with GStreamer, in the system's Python, where Debian's gi is.

    /usr/bin/python3 -I gst_child.py <its socket> <the ring>      # started by `launcher`
    /usr/bin/python3 -I gst_child.py check                        # exit status 0 where GStreamer works

Standard library and gi alone. It says the same as `child`. Pipelines come as values (`pipelines`) and are made element
by element; a text is only parsed where the configuration has a ``gst:`` pipeline. Hardware elements of Jetson boards
are in those values; written from their documentation and not run on a board.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Behind everything else: of this repository's or environment's packages, `runtime` alone is wanted here.
sys.path.append(str(Path(__file__).resolve().parents[3]))

from runtime.captiond.capture import confine, messages
from runtime.captiond.capture.gst_pipeline import Failure, Running, copy_rgb, working
from runtime.captiond.capture.ring import Kind, Ring

_FAILED = 5
_SAY_S = 5
_PULL_NS = 200_000_000
_READ_TIMEOUT_S = 5.0
_FULL_S = 0.005
_MAX_STAMP_AGE_NS = 5_000_000_000


class Capture:
    """Takes samples of a running pipeline into the ring."""

    def __init__(self, sock: socket.socket, ring: Ring, arguments: messages.Message) -> None:
        self._sock = sock
        self._ring = ring
        self._arguments = arguments
        self._every_frame = arguments["every_frame"] is True
        self._seq = int(str(arguments["first_seq"]))
        self._opened = False
        messages.patient(sock, _SAY_S)

    def run(self) -> None:
        """Deliver until the source ends. Raises Failure."""
        with Running(self._arguments) as running:
            while True:
                for sample in self._samples(running):
                    self._deliver(running, sample)
                if not self._opened:
                    raise Failure("no_video", "the source ended before its first frame")
                if self._arguments["loop"] is not True or not running.rewind():
                    return

    def say(self, message: messages.Message) -> None:
        """Say something that must not be lost."""
        messages.send(self._sock, message)

    def _samples(self, running: Running) -> Iterator[Any]:
        began = time.monotonic()
        limit_s = float(str(self._arguments["open_timeout_s"]))
        while True:
            sample = running.sink.emit("try-pull-sample", _PULL_NS)
            running.check()
            if sample is not None:
                yield sample
                began, limit_s = time.monotonic(), _READ_TIMEOUT_S
            elif running.ended():
                return
            elif time.monotonic() - began > limit_s:
                raise Failure("timeout", f"no frame for {limit_s:g} s")

    def _deliver(self, running: Running, sample: Any) -> None:
        shape = sample.get_caps().get_structure(0)
        width, height = shape.get_value("width"), shape.get_value("height")
        running.check_size(width, height)
        if not self._opened:
            self._opened = True
            fps = running.rate(shape)
            self.say({"type": "opened", "width": width, "height": height, "fps": fps, "what": "gstreamer"})
        t_ns, kind = self._time(running, sample)
        place = self._place(3 * width * height)
        if place is not None:
            with place:
                copy_rgb(sample.get_buffer(), place, width, height)
            self._ring.commit(width, height, self._seq, t_ns, kind)
            self._tell(t_ns)
        self._seq += 1
        if self._every_frame:
            self._wait_next()

    def _place(self, nbytes: int) -> memoryview | None:
        if nbytes > self._ring.slot_bytes:
            raise Failure("too_large", f"frames of {nbytes} bytes, a slot has {self._ring.slot_bytes}")
        place = self._ring.begin(nbytes)
        while place is None and self._every_frame:
            time.sleep(_FULL_S)
            place = self._ring.begin(nbytes)
        return place

    def _tell(self, t_ns: int) -> None:
        flags = 0 if self._every_frame else socket.MSG_DONTWAIT
        try:
            messages.send(self._sock, {"type": "frame", "seq": self._seq, "t_capture_ns": t_ns}, (), flags)
        except BlockingIOError:  # the daemon is slow; it finds the frame in the ring
            return

    def _wait_next(self) -> None:
        received = messages.receive(self._sock)
        if received is None:
            raise Failure("closed", "the daemon is gone")

    def _time(self, running: Running, sample: Any) -> tuple[int, Kind]:
        """When the driver stamped the frame, where it does and this can be true, else now."""
        now = time.monotonic_ns()
        stamp = running.stamp_ns(sample)
        if stamp is not None and now - _MAX_STAMP_AGE_NS <= stamp <= now:
            return stamp, "exposure"
        return now, "arrival"


def _attempt(sock: socket.socket, ring: Ring, arguments: messages.Message) -> int:
    capture = Capture(sock, ring, arguments)
    try:
        try:
            capture.run()
        except Failure as failed:
            capture.say({"type": "failed", "cause": failed.cause, "message": f"{arguments['uri']}: {failed}"})
            return _FAILED
        except MemoryError:
            capture.say({"type": "failed", "cause": "memory", "message": f"{arguments['uri']}: it needs more memory"})
            return _FAILED
        capture.say({"type": "ended"})
    except OSError:  # the daemon is gone or does not listen
        return _FAILED
    return 0


def main(given: list[str]) -> int:
    """Run one attempt, or say by the exit status whether GStreamer works."""
    if given == ["check"]:
        return 0 if working() else 1
    fds = [int(number) for number in given]
    parent = os.getppid()
    confine.confine("vlm-capture", parent=parent, oom_score_adj=900)
    confine.keep_only(fds)
    for fd in fds:
        os.set_inheritable(fd, False)
    with socket.socket(fileno=fds[0]) as sock:
        received = messages.receive(sock)
        if received is None:
            return _FAILED
        arguments = received[0]["arguments"]
        assert isinstance(arguments, dict)
        confine.limit_memory(int(arguments["memory_mib"]))
        status = _attempt(sock, Ring.attach(fds[1]), arguments)
    sys.stderr.flush()
    os._exit(status)  # threads of drivers are not waited for


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
