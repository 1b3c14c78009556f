"""Every way in which a camera fails, through the real supervisor, launcher and capture processes.

Each kind: the camera delivers; then it fails, which is noticed and named, and no old frame is shown (or which it is
meant to survive, and frames go on); then it is well, and newer frames come, without anybody's help. The kinds of a
group fail side by side, each with a camera of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from runtime.captiond.capture.launcher import Launcher
from runtime.captiond.capture.process import Child
from runtime.captiond.capture.ring import Ring
from runtime.captiond.capture.supervisor import SourceRunner
from runtime.captiond.clock import Clock
from runtime.captiond.config.settings import SourceSettings
from runtime.captiond.events import Event, SourceChanged
from tests.peers.faulty_camera import FaultyCamera
from tests.peers.mjpeg_server import MjpegServer
from tests.peers.proxy import Fault, FaultProxy
from tests.peers.rtsp_server import RtspServer

pytest.importorskip("cv2", reason="needs OpenCV: pip install 'jetson-vlm[video]'")

_LIMIT_S = 60.0
_WORDS = frozenset({"refused", "reset", "closed", "timeout", "stalled", "unsupported", "damaged", "no_video", "failed"})


class Recorder(Launcher):
    """The launcher, and the newest child of each source."""

    def __init__(self) -> None:
        super().__init__()
        self.newest: dict[str, Child] = {}

    async def launch_capture(self, source: SourceSettings, password: str | None, ring: Ring, first_seq: int) -> Child:
        child = await super().launch_capture(source, password, ring, first_seq)
        self.newest[source.name] = child
        return child


@dataclass
class Watched:
    """A source under test and what it told."""

    runner: SourceRunner
    launcher: Recorder
    events: list[SourceChanged] = field(default_factory=list)

    @property
    def live(self) -> bool:
        return self.runner.status == "live"

    @property
    def causes(self) -> set[str]:
        return {event.cause for event in self.events if event.status == "no_signal"}

    def child(self) -> Child:
        return self.launcher.newest[self.runner.settings.name]

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for a condition; the test fails when it does not come true."""
        end_s = time.monotonic() + _LIMIT_S
        while not condition():
            assert time.monotonic() < end_s, f"not {what}: {[(e.status, e.cause, e.message) for e in self.events]}"
            assert self.live or self.runner.newest() is None, "no signal, and yet a frame"
            await asyncio.sleep(0.01)

    async def frames(self, count: int, what: str) -> None:
        """Wait for so many frames that were captured from now on."""
        begun_ns, before = time.monotonic_ns(), self.runner.stats.frames
        await self.until(lambda: self.live and self.runner.stats.frames >= before + count, what)
        header = self.runner.newest()
        assert header is None or header.t_capture_ns > begun_ns

    async def lost(self, causes: frozenset[str] | set[str], what: str) -> None:
        """Wait until the signal is lost for one of these causes."""
        await self.until(lambda: not self.live and bool(self.causes & causes), what)


@contextlib.asynccontextmanager
async def launching() -> AsyncIterator[Recorder]:
    """A launcher that leaves no process and no open file behind."""
    before = _open_files()
    launcher = Recorder()
    try:
        yield launcher
    finally:
        await launcher.close()
    assert _open_files() <= before
    for child in launcher.newest.values():
        with pytest.raises(ProcessLookupError):
            os.kill(child.pid, 0)


@contextlib.asynccontextmanager
async def watching(launcher: Recorder, name: str, uri: str, **settings: object) -> AsyncIterator[Watched]:
    """A running source."""
    given = SourceSettings(name=name, uri=uri, **({"open_timeout_s": 4.0, "max_side_px": 320} | settings))  # type: ignore[arg-type]
    events: list[SourceChanged] = []

    def keep(event: Event) -> None:
        assert isinstance(event, SourceChanged)
        events.append(event)

    runner = SourceRunner(given, lambda: None, launcher, keep, Clock(), random.Random(1))
    task = asyncio.create_task(runner.run())
    try:
        yield Watched(runner, launcher, events)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        runner.close()


def _open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def _camera_fails(launcher: Recorder, kind: str, causes: frozenset[str] | None) -> None:
    """``causes``: how the loss may be named; None: the camera is odd, and frames go on."""
    with FaultyCamera(160, 120, fps=12, gop=12) as camera:
        async with watching(launcher, kind.replace("_", "-"), camera.uri) as watched:
            await watched.frames(5, f"live before {kind}")
            if kind == "refuse":
                camera.refuse()
            else:
                camera.behave(kind)
            if kind not in ("freeze", "switch"):
                camera.reset_all()
            if causes is None:
                sent = camera.sent
                await watched.until(lambda: camera.sent > sent + 12, f"sent as {kind}")
                await watched.frames(20, f"live in spite of {kind}")
            else:
                await watched.lost(causes, f"lost by {kind}")
            camera.behave("good")
            camera.accept()
            await watched.frames(10, f"live after {kind}")
            assert len(watched.events) < 20, "a state is told when it changes"


GROUPS: dict[str, dict[str, frozenset[str] | None]] = {
    "answers": {
        "refuse": frozenset({"refused"}),
        "silent": frozenset({"timeout"}),
        "401": frozenset({"401"}),
        "404": frozenset({"404"}),
        "trickle": frozenset({"timeout"}),
        "reset_handshake": _WORDS - {"stalled"},
    },
    "descriptions": {
        "bad_sdp": frozenset({"damaged"}),
        "no_video": frozenset({"no_video"}),
        "unknown_codec": frozenset({"unsupported"}),
        "large": frozenset({"too_large"}),
        "audio_first": None,
        "mid_gop": None,
    },
    "streams": {
        "freeze": frozenset({"stalled"}),
        "reset": frozenset({"closed", "reset", "failed"}),
        "switch": None,
        "pts_jump": None,
        "burst": None,
        "identical": None,
    },
}


@pytest.mark.parametrize("group", GROUPS)
def test_a_camera_that_fails_is_noticed_and_comes_back(group: str) -> None:
    async def main() -> None:
        async with launching() as launcher:
            await asyncio.gather(*(_camera_fails(launcher, kind, causes) for kind, causes in GROUPS[group].items()))

    asyncio.run(main())


async def _pictures_are_damaged(launcher: Recorder, kind: str) -> None:
    """In the middle of a stream, and from its first picture on. Whether that is a loss is the decoder's to say."""
    with FaultyCamera(160, 120, fps=12, gop=12) as camera:
        async with watching(launcher, kind.replace("_", "-"), camera.uri) as watched:
            await watched.frames(5, "live")
            camera.behave(kind)
            for where in ("in the middle", "from the first picture on"):
                sent = camera.sent
                await watched.until(lambda: camera.sent > sent + 18, f"sent {kind} {where}")  # noqa: B023 (called here)
                camera.reset_all()
            camera.behave("good")
            await watched.frames(10, f"live after {kind}")


def test_damaged_pictures_harm_nobody_and_good_ones_are_seen_again() -> None:
    async def main() -> None:
        async with launching() as launcher:
            kinds = ("bit_flips", "truncated", "huge")
            await asyncio.gather(*(_pictures_are_damaged(launcher, kind) for kind in kinds))

    asyncio.run(main())


async def _child_ends(launcher: Recorder, number: signal.Signals, cause: str) -> None:
    with FaultyCamera(160, 120, fps=12, gop=12) as camera:
        async with watching(launcher, number.name.lower(), camera.uri) as watched:
            await watched.frames(5, "live")
            child = watched.child()
            child.kill(number)
            await watched.lost({cause}, f"lost by {number.name}")
            await watched.frames(5, f"live after {number.name}")
            assert watched.child() is not child
            assert watched.runner.stats.reconnects == 1


def test_a_capture_process_that_is_killed_crashes_or_stops_is_replaced() -> None:
    async def main() -> None:
        ends = [(signal.SIGKILL, "killed"), (signal.SIGSEGV, "crashed"), (signal.SIGSTOP, "stalled")]
        async with launching() as launcher:
            await asyncio.gather(*(_child_ends(launcher, number, cause) for number, cause in ends))

    asyncio.run(main())


async def _server_fails(launcher: Recorder, codec: str, backend: str) -> None:
    with RtspServer(codec, fps=12, gop=12) as server:
        async with watching(launcher, f"{codec}-{backend}", server.uri, backend=backend) as watched:
            await watched.frames(5, "live")
            faults = [
                (server.kill, server.restart, {"refused"}),
                (lambda: server.signal(signal.SIGSTOP), lambda: server.signal(signal.SIGCONT), {"timeout"}),
                (lambda: server.say("unmount"), lambda: server.say("mount"), {"404"}),
            ]
            for begin, end, causes in faults:
                begin()
                await watched.lost(causes, f"lost for {causes}")
                end()
                await watched.frames(5, f"live after {causes}")
            await asyncio.to_thread(server.resize, 160, 120)
            await watched.frames(24, "live at another size")


def test_a_real_server_that_is_killed_stopped_and_emptied_is_seen_again() -> None:
    async def main() -> None:
        pairs = [("h264", "opencv"), ("h265", "gstreamer")]
        async with launching() as launcher:
            await asyncio.gather(*(_server_fails(launcher, codec, backend) for codec, backend in pairs))

    asyncio.run(main())


async def _network_fails(launcher: Recorder, name: str, fault: Fault) -> None:
    with FaultyCamera(160, 120, fps=12, gop=12) as camera, FaultProxy(camera.port) as proxy:
        uri = camera.uri.replace(str(camera.port), str(proxy.port))
        async with watching(launcher, name, uri) as watched:
            await watched.frames(5, f"live before {name}")
            proxy.fault = fault
            await watched.until(lambda: not watched.live, f"lost by {name}")
            attempts = watched.runner.stats.attempts
            await watched.until(lambda: watched.runner.stats.attempts > attempts, "tried again")
            proxy.fault = Fault()
            await watched.frames(5, f"live after {name}")
            assert watched.runner.stats.reconnects == 1


def test_a_network_that_carries_nothing_is_noticed_and_left() -> None:
    async def main() -> None:
        kinds = {
            "half-open": Fault(silent=True),
            "slow": Fault(bytes_per_s=1),
            "resets": Fault(reset_after_bytes=1),
            "no-way": Fault(reset_on_accept=True, reset_after_bytes=1),
        }
        async with launching() as launcher:
            await asyncio.gather(*(_network_fails(launcher, name, fault) for name, fault in kinds.items()))

    asyncio.run(main())


async def _mjpeg_fails(launcher: Recorder, kind: str, causes: frozenset[str] | set[str]) -> None:
    with MjpegServer(160, 120, fps=12) as camera:
        async with watching(launcher, f"mjpeg-{kind.replace('_', '-')}", camera.uri) as watched:
            await watched.frames(5, f"live before {kind}")
            camera.behave(kind)
            if kind != "freeze":
                camera.reset_all()
            await watched.lost(causes, f"lost by {kind}")
            camera.behave("good")
            camera.reset_all()
            await watched.frames(5, f"live after {kind}")


def test_an_mjpeg_camera_fails_and_comes_back() -> None:
    async def main() -> None:
        kinds = {
            "freeze": {"stalled"},
            "401": {"401"},
            "404": {"404"},
            "reset": _WORDS,
            "damaged": _WORDS,
            "silent": {"timeout"},
            "trickle": _WORDS,
            "endless_header": _WORDS,
            "huge": _WORDS | {"too_large"},
        }
        async with launching() as launcher:
            await asyncio.gather(*(_mjpeg_fails(launcher, kind, causes) for kind, causes in kinds.items()))

    asyncio.run(main())
