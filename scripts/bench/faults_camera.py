"""Faults of cameras against the whole daemon, in real time; `scripts/bench/faults.py` runs them.

One daemon watches one camera of 30 frames per second through a TCP proxy: a real RTSP server (GStreamer's, H.264), or
for what that cannot do wrong a scripted camera. Once it is captioned, the fault begins, lasts as long as the seed says
(at least until it is noticed), and ends.

``noticed_s``: from the fault to the source's event, as a watcher of /events receives it. ``back_s``: from the instant
at which the camera is well and accepts again to the receipt of the first caption of a frame captured after that; for
odd cameras that are no fault (audio first, …) from the instant at which they are odd.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.peers.daemon import RunningDaemon, descendants
from tests.peers.faulty_camera import FaultyCamera
from tests.peers.proxy import Fault, FaultProxy
from tests.peers.rtsp_server import RtspServer

FPS, GOP = 30, 30
PATIENCE_S = 60.0
LASTS_S = (2.0, 5.0)
AWAY_S = 30.0
LATE_S = 5.0
"""A return that takes longer is reported with what the daemon said meanwhile."""
NAME = "camera"


class Lost(AssertionError):
    """Something that had to come did not."""


class Events:
    """The daemon's event stream, with the time at which each event came."""

    def __init__(self, url: str) -> None:
        place = urlsplit(url)
        assert place.hostname is not None
        self._connection = http.client.HTTPConnection(place.hostname, place.port)
        self._connection.request("GET", "/events?types=source,caption")
        self._socket = self._connection.sock  # the answer takes it from the connection
        self._answer = self._connection.getresponse()
        assert self._answer.status == 200, self._answer.status
        self._kept: list[tuple[float, dict[str, Any]]] = []
        self._more = threading.Condition()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def wait(
        self, condition: Callable[[dict[str, Any]], bool], after_s: float, what: str
    ) -> tuple[float, dict[str, Any]]:
        """The first event that came after a moment and meets the condition, and when."""
        end_s, seen = time.monotonic() + PATIENCE_S, 0
        with self._more:
            while True:
                for came_s, event in self._kept[seen:]:
                    if came_s > after_s and condition(event):
                        return came_s, event
                seen = len(self._kept)
                if not self._more.wait(end_s - time.monotonic()) and time.monotonic() >= end_s:
                    raise Lost(f"{what} within {PATIENCE_S:g} s; the last states: {self.states(after_s)[-4:]}")

    def states(self, since_s: float) -> list[str]:
        """What was said of the source, in seconds from a moment."""
        said = [(came_s - since_s, event) for came_s, event in list(self._kept) if event["type"] == "source"]
        return [f"{at_s:.2f} {event['status']} {event['cause']} {event['message']}" for at_s, event in said]

    def forget(self) -> None:
        """Let go of what came so far."""
        with self._more:
            self._kept = []

    def close(self) -> None:
        """Hang up."""
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._answer.close()
        self._connection.close()

    def _read(self) -> None:
        try:
            while line := self._answer.readline():
                if line.startswith(b"data:"):
                    with self._more:
                        self._kept.append((time.monotonic(), json.loads(line[5:])))
                        self._more.notify_all()
        except (OSError, ValueError, http.client.HTTPException):
            return


class Stage:
    """A daemon, its camera, and what can be done to both."""

    def __init__(self, folder: Path, server: RtspServer, camera: FaultyCamera, proxy: FaultProxy, real: bool) -> None:
        self.server, self.camera, self.proxy, self.real = server, camera, proxy, real
        source = {
            "name": NAME,
            "uri": f"rtsp://127.0.0.1:{proxy.port}/live",
            "captions_per_s": 5.0,
            "prompt": [{"id": "look", "text": "Describe the image.", "max_new_tokens": 24}],
        }
        self.daemon = RunningDaemon(folder, [source])
        self.events: Events

    def captioned(self, after_s: float, what: str) -> float:
        """When the first caption of a frame that was captured after a moment came."""
        after_ns = round(after_s * 1e9)
        return self.events.wait(
            lambda event: event["type"] == "caption" and event["frame"]["t_capture_ns"] > after_ns, after_s, what
        )[0]

    def lost(self, after_s: float) -> float:
        """When the daemon said that there is no signal."""
        return self.events.wait(lambda e: e["type"] == "source" and e["status"] == "no_signal", after_s, "not noticed")[
            0
        ]

    def capture_pid(self) -> int:
        """The process that is connected to the camera's proxy."""
        found = [pid for pid in descendants(self.daemon.process.pid) if _connected_to(pid, self.proxy.port)]
        if len(found) != 1:
            raise Lost(f"{len(found)} processes are connected to the camera")
        return found[0]

    def restart(self, **changed: object) -> None:
        """Another server on the same port; the proxy lets go of the old one's connections."""
        self.proxy.refuse()
        self.proxy.reset_all()
        self.server.restart(**changed)
        self.proxy.accept()

    def vanish(self) -> None:
        """The server's machine is gone."""
        self.proxy.refuse()
        self.server.kill()
        self.proxy.reset_all()

    def behave(self, kind: str) -> None:
        """The scripted camera does it, to new connections too."""
        self.camera.behave(kind)
        self.proxy.reset_all()


Act = Callable[[Stage], None]


@dataclass(frozen=True)
class Kind:
    """``begin`` and ``end`` of a fault. ``lost``: the signal must be lost. ``odd``: no fault, but a camera that is
    unusual from ``begin`` on. ``real``: against GStreamer's server. ``lasts_s``: at least, and at most."""

    begin: Act
    end: Act
    lost: bool = True
    odd: bool = False
    real: bool = True
    lasts_s: tuple[float, float] = LASTS_S


def _nothing(_: Stage) -> None:
    return


def _said(begin: str, end: str, lost: bool = True) -> Kind:
    return Kind(lambda stage: stage.server.say(begin), lambda stage: stage.server.say(end), lost)


def _network(fault: Fault, lost: bool = True, reset: bool = False) -> Kind:
    def begin(stage: Stage) -> None:
        stage.proxy.fault = fault
        if reset:
            stage.proxy.reset_all()

    def end(stage: Stage) -> None:
        stage.proxy.fault = Fault()

    return Kind(begin, end, lost)


def _scripted(kind: str, lost: bool = True, odd: bool = False) -> Kind:
    return Kind(lambda stage: stage.behave(kind), lambda stage: stage.camera.behave("good"), lost, odd, real=False)


def _child(number: signal.Signals) -> Kind:
    return Kind(lambda stage: os.kill(stage.capture_pid(), number), _nothing, lasts_s=(0.0, 0.0))


def _lock(stage: Stage) -> None:
    stage.server.say("login")
    stage.server.say("drop")
    stage.proxy.reset_all()


def _unlock(stage: Stage) -> None:
    stage.server.say("open")


def _resize(stage: Stage) -> None:
    stage.server.resize(480, 360)


def _resize_back(stage: Stage) -> None:
    stage.server.resize(320, 240)


KINDS: dict[str, Kind] = {
    "refuse": Kind(Stage.vanish, Stage.restart),
    "away for 30 s": Kind(Stage.vanish, Stage.restart, lasts_s=(AWAY_S, AWAY_S)),
    "silent accept": Kind(
        lambda stage: stage.server.signal(signal.SIGSTOP), lambda stage: stage.server.signal(signal.SIGCONT)
    ),
    "half-open": _network(Fault(silent=True)),
    "401": Kind(_lock, _unlock),
    "404": _said("unmount", "mount"),
    "reset in handshake": _network(Fault(reset_after_bytes=1), reset=True),
    "reset mid-stream": Kind(lambda stage: stage.proxy.reset_all(), _nothing, lasts_s=(0.0, 0.0)),
    "freeze": _said("freeze", "thaw"),
    "trickle": _network(Fault(bytes_per_s=1)),
    "bit flips": Kind(
        lambda stage: setattr(stage.proxy, "fault", Fault(flip_share=0.01)),
        lambda stage: setattr(stage.proxy, "fault", Fault()),
        lost=False,
    ),
    "no video": Kind(lambda stage: stage.restart(no_video=True), lambda stage: stage.restart(no_video=False)),
    "audio first": Kind(
        lambda stage: stage.restart(audio_first=True), lambda stage: stage.restart(audio_first=False), odd=True
    ),
    "codec switch": Kind(
        lambda stage: stage.restart(codec="h265"), lambda stage: stage.restart(codec="h264"), odd=True
    ),
    "resolution switch": Kind(_resize, _resize_back, lost=False, odd=True),
    "300 fps burst": _said("burst 9", "burst 0", lost=False),
    "child SIGKILL": _child(signal.SIGKILL),
    "child SIGSEGV": _child(signal.SIGSEGV),
    "child SIGSTOP": _child(signal.SIGSTOP),
    "bad SDP": _scripted("bad_sdp"),
    "unknown codec": _scripted("unknown_codec"),
    "mid-GOP join": _scripted("mid_gop", odd=True),
    "PTS jump": Kind(
        lambda stage: stage.camera.behave("pts_jump"),
        lambda stage: stage.camera.behave("good"),
        lost=False,
        odd=True,
        real=False,
    ),
    "truncated NAL units": _scripted("truncated", lost=False),
    "huge picture, 16384x16384": _scripted("huge", lost=False),
    "large picture, 8192x8192": _scripted("large"),
    "frozen identical frames": _scripted("identical", lost=False, odd=True),
}


@contextmanager
def staged(real: bool) -> Iterator[Stage]:
    """A daemon that captions its camera."""
    with tempfile.TemporaryDirectory() as folder, RtspServer(fps=FPS, gop=GOP) as server:
        with FaultyCamera(fps=FPS, gop=GOP) as camera, FaultProxy(server.port if real else camera.port) as proxy:
            stage = Stage(Path(folder), server, camera, proxy, real)
            with stage.daemon:
                stage.events = Events(stage.daemon.url)
                try:
                    stage.captioned(0.0, "no first caption")
                    yield stage
                finally:
                    stage.events.close()


def injected(stage: Stage, kind: Kind, rng: random.Random) -> tuple[float | None, float]:
    """One fault, from captions to captions. Returns noticed_s (None where nothing has to be noticed) and back_s."""
    stage.captioned(time.monotonic(), "no caption before the fault")
    time.sleep(rng.uniform(0.5, 2.5))
    stage.events.forget()
    begun_s = time.monotonic()
    kind.begin(stage)
    odd_s = time.monotonic()  # from here on the camera is odd
    noticed_s = stage.lost(begun_s) - begun_s if kind.lost else None
    if kind.odd:
        back_s = stage.captioned(odd_s, "no caption of the odd camera") - odd_s
    time.sleep(max(0.0, begun_s + rng.uniform(*kind.lasts_s) - time.monotonic()))
    kind.end(stage)
    if not kind.odd:
        # A fault of a moment is over at once: the camera was well all the time.
        well_s = odd_s if kind.end is _nothing else time.monotonic()
        back_s = stage.captioned(well_s, "no caption after the fault") - well_s
    return noticed_s, back_s


def measured(kind: str, seeds: int) -> dict[str, Any]:
    """All injections of one kind as a row of the report."""
    noticed: list[float] = []
    back: list[float] = []
    failures: list[str] = []
    late: list[dict[str, Any]] = []
    with staged(KINDS[kind].real) as stage:
        for seed in range(seeds):
            begun_s = time.monotonic()
            try:
                seen_s, back_s = injected(stage, KINDS[kind], random.Random(f"{kind} {seed}"))
            except Lost as problem:
                failures.append(f"seed {seed}: {problem}")
                break
            if back_s > LATE_S:
                late.append({"seed": seed, "back_s": round(back_s, 3), "states": stage.events.states(begun_s)})
            back.append(back_s)
            noticed += [] if seen_s is None else [seen_s]
    peer = "gst-rtsp-server" if KINDS[kind].real else "scripted camera"
    row: dict[str, Any] = {
        "kind": kind,
        "peer": peer,
        "injections": seeds,
        "recovered": len(back),
        "failures": failures,
    }
    for name, values in (("noticed_s", sorted(noticed)), ("back_s", sorted(back))):
        if values:
            row[name] = {"p50": _at(values, 50), "p95": _at(values, 95), "max": _at(values, 100)}
    return row | ({"late": late} if late else {})


def _at(values: list[float], percent: int) -> float:
    """A percentile of sorted values, by the nearest rank."""
    return round(values[max(0, -(-percent * len(values) // 100) - 1)], 3)


def _connected_to(pid: int, port: int) -> bool:
    """Whether a process has a TCP connection to a port of this machine."""
    try:
        lines = Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]
        links = [str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()]
    except OSError:
        return False
    remote = f"0100007F:{port:04X}"
    inodes = {fields[9] for line in lines if (fields := line.split())[2] == remote and fields[3] == "01"}
    return any(link == f"socket:[{inode}]" for inode in inodes for link in links)
