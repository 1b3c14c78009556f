"""Children are forked from a zygote, confined, watched without mistakes, and leave nothing behind."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from runtime.captiond.capture import confine, messages, zygote
from runtime.captiond.capture.launcher import Launcher, environment
from runtime.captiond.capture.process import Child
from runtime.captiond.capture.ring import Ring
from runtime.captiond.capture.start import CAPTURE
from runtime.errors import SourceError
from tests.runtime.captiond.capture.attempts import attempt, launched, source

ENDLESS = "synthetic://?width=32&height=32&fps=50"
PASSWORD = "s3cret-Pa55"


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


async def until(condition: Any) -> None:
    while not condition():
        await asyncio.sleep(0.02)


async def started(
    launcher: Launcher, ring: Ring, uri: str = ENDLESS, **settings: Any
) -> tuple[Any, AsyncIterator[Any]]:
    """A child that delivers, and its messages behind the first."""
    child = await launcher.launch_capture(source(uri, **settings), PASSWORD, ring, 0)
    said = child.messages()
    assert (await said.__anext__())["type"] == "opened"
    return child, said


@pytest.fixture
def ring() -> Any:
    made = Ring.create(3 * 64 * 64)
    yield made
    made.close()


def test_an_exit_is_reported_with_its_status_and_last_words() -> None:
    async def work(launcher: Launcher) -> None:
        ended = await attempt(launcher, "synthetic://?width=32&height=32&fps=500&frames=3")
        assert (ended.status, ended.cause) == (0, "ended")
        failed = await attempt(launcher, "/no/such/film.mp4")
        assert (failed.status, failed.cause) == (5, "missing")

    launched(work)


def test_what_a_child_said_last_can_be_read_after_its_death(ring: Ring) -> None:
    async def work(launcher: Launcher) -> None:
        child = await launcher.launch_capture(source("/no/such/film.mp4"), None, ring, 0)
        assert await child.wait() == 5
        assert [message["type"] async for message in child.messages()] == ["failed"]
        with pytest.raises(OSError):
            child.send({"type": "next"})

    launched(work)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_the_exit_status(ring: Ring, number: int) -> None:
    async def work(launcher: Launcher) -> None:
        child, _ = await started(launcher, ring)
        child.kill(number)
        assert await child.wait() == -number
        child.kill()  # nothing happens to whoever has this pid by now

    launched(work)


def test_the_zygote_is_started_again_and_its_children_go_with_it(ring: Ring) -> None:
    async def work(launcher: Launcher) -> None:
        first, _ = await started(launcher, ring)
        (zygote,) = launcher.processes()["zygote"]
        os.kill(zygote, signal.SIGKILL)
        assert await first.wait() == -signal.SIGKILL
        assert not alive(first.pid)
        second, _ = await started(launcher, ring)
        assert launcher.processes()["zygote"] != [zygote] and second.pid != first.pid

    launched(work)


def test_a_zygote_that_dies_while_it_is_asked_is_replaced_and_the_child_comes(ring: Ring) -> None:
    async def work(launcher: Launcher) -> None:
        await launcher.start()
        (zygote,) = launcher.processes()["zygote"]
        os.kill(zygote, signal.SIGSTOP)
        asked = asyncio.ensure_future(launcher.launch_capture(source(ENDLESS), None, ring, 0))
        await asyncio.sleep(0.1)
        os.kill(zygote, signal.SIGKILL)
        child = await asked
        assert alive(child.pid)

    launched(work)


def test_children_end_when_the_daemon_does(ring: Ring) -> None:
    """The end of the zygote's socket is what a daemon that was killed leaves."""

    async def work(launcher: Launcher) -> None:
        child, _ = await started(launcher, ring)
        zygote = launcher._zygote
        assert zygote is not None
        zygote._loop.remove_reader(zygote._sock.fileno())
        zygote._sock.close()
        await until(lambda: not alive(child.pid) and not alive(zygote.pid))
        zygote.dead = True
        zygote._process.wait()
        child.exited(-9)

    launched(work)


def test_a_child_has_only_its_own_files_and_is_confined(ring: Ring) -> None:
    async def work(launcher: Launcher) -> None:
        other, _ = await started(launcher, ring)
        child, _ = await started(launcher, ring, memory_mib=256)
        folder = Path(f"/proc/{child.pid}")
        targets = [str(entry.readlink()) for entry in (folder / "fd").iterdir()]
        assert sum(target.startswith("socket:") for target in targets) == 1, targets
        assert sum(target.startswith("/memfd:vlm-frames") for target in targets) == 2  # the ring, and its mapping's own
        assert len(targets) <= 6, targets
        name, oom_score_adj = zygote.KINDS[CAPTURE]
        assert (folder / "oom_score_adj").read_text().strip() == str(oom_score_adj)
        assert (folder / "comm").read_text().strip() == name
        assert os.getsid(child.pid) == child.pid
        status = (folder / "status").read_text()
        assert "NoNewPrivs:\t1" in status and "SigBlk:\t0000000000000000" in status
        assert resource.prlimit(child.pid, resource.RLIMIT_CORE) == (0, 0)
        limit, _ = resource.prlimit(child.pid, resource.RLIMIT_DATA)
        assert 256 << 20 < limit < (256 + 400) << 20
        assert other.pid != child.pid

    launched(work)


def test_captures_are_the_first_to_go_when_memory_ends() -> None:
    scores = {kind: score for kind, (_, score) in zygote.KINDS.items()}
    assert max(scores, key=lambda kind: scores[kind]) == CAPTURE and min(scores.values()) > 0


def test_the_memory_that_is_limited_is_that_which_grows() -> None:
    before = confine.private_bytes()
    kept = bytearray(64 << 20)
    assert 60 << 20 < confine.private_bytes() - before < 70 << 20
    del kept


def test_secrets_are_in_no_command_line_and_in_no_environment(ring: Ring) -> None:
    async def work(launcher: Launcher) -> None:
        uri = f"http://user:{PASSWORD}@127.0.0.1:9/video"
        child = await launcher.launch_capture(source(uri), PASSWORD, ring, 0)
        for pid in (child.pid, *launcher.processes()["zygote"], os.getpid()):
            for name in ("cmdline", "environ"):
                try:
                    text = Path(f"/proc/{pid}/{name}").read_bytes()
                except (FileNotFoundError, ProcessLookupError):
                    continue
                assert PASSWORD.encode() not in text
        said = [message async for message in child.messages()]
        assert said and PASSWORD not in str(said)

    launched(work)


def test_children_do_not_inherit_what_is_meant_for_the_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/systemd/notify")
    monkeypatch.setenv("HOME", "/srv/vlm")
    assert "NOTIFY_SOCKET" not in environment() and environment()["HOME"] == "/srv/vlm"
    assert environment()["OPENBLAS_NUM_THREADS"] == "1"


def test_nothing_stays_open_after_many_children() -> None:
    async def work(launcher: Launcher) -> None:
        await attempt(launcher, "/no/such/film.mp4")
        before = open_files()
        for turn in range(12):
            uri = ["/no/such/film.mp4", ENDLESS, "synthetic://?width=32&height=32&fps=500&frames=2"][turn % 3]
            await attempt(launcher, uri, frames=1)
        assert open_files() == before
        zygote = launcher.processes()["zygote"][0]
        await until(lambda: len(list(Path(f"/proc/{zygote}/fd").iterdir())) <= 6)
        await until(lambda: launcher.processes()["capture"] == [])

    outside = open_files()
    launched(work)
    assert open_files() == outside


@pytest.mark.parametrize("kind", ["os", "runtime.captiond.capture.ring", "../child", ""])
def test_only_known_kinds_are_started(kind: str) -> None:
    async def work(launcher: Launcher) -> None:
        with pytest.raises(SourceError, match="nothing of the kind"):
            await launcher.spawn(kind, {})
        seen = await attempt(launcher, "/no/such/film.mp4")
        assert (seen.cause, seen.status) == ("missing", 5)

    launched(work)


def test_a_closed_launcher_starts_nothing() -> None:
    async def run() -> None:
        launcher = Launcher()
        await launcher.start()
        await launcher.close()
        await launcher.close()
        with pytest.raises(SourceError, match="closed"):
            await launcher.spawn(CAPTURE, {})

    asyncio.run(run())


def test_the_daemon_loads_neither_numpy_nor_opencv_for_it() -> None:
    code = "import sys, runtime.captiond.capture.launcher; print(sorted({'numpy', 'cv2', 'PIL'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


class TestMessages:
    """A packet is a JSON object with a type, and the files that were asked for."""

    @staticmethod
    def pair() -> Any:
        return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def test_files_come_with_it_and_those_that_nobody_asked_for_are_closed(self) -> None:
        one, two = self.pair()
        before = open_files()
        with one, two:
            messages.send(one, {"type": "a"}, [0])
            message, fds = messages.receive(two, 1) or ({}, [])
            assert message == {"type": "a"} and len(fds) == 1
            os.close(fds[0])
            messages.send(one, {"type": "b"}, [0, 0, 0])
            assert messages.receive(two) == ({"type": "b"}, [])
            assert open_files() == before

    @pytest.mark.parametrize("packet", [b"x", b"[]", b"{}", b'{"type":1}', b"[" * 60_000, b"\xff"])
    def test_a_packet_that_is_no_message_is_refused_and_its_files_closed(self, packet: bytes) -> None:
        one, two = self.pair()
        before = open_files()
        with one, two:
            one.sendmsg([packet], [(1, 1, (0).to_bytes(4, "little"))])
            with pytest.raises(messages.MessageError):
                messages.receive(two, 4)
            assert open_files() == before

    def test_the_end_is_none_and_a_large_message_is_refused(self) -> None:
        one, two = self.pair()
        with two:
            with one, pytest.raises(messages.MessageError, match="the limit is 65536"):
                messages.send(one, {"type": "x" * 70_000})
            assert messages.receive(two) is None


def test_a_child_that_sends_rubbish_is_killed() -> None:
    async def run() -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        process = subprocess.Popen(["sleep", "60"])
        child = Child(CAPTURE, process.pid, os.pidfd_open(process.pid), ours, process.wait)
        with theirs:
            messages.send(theirs, {"type": "opened"})
            theirs.send(b"{}")
            messages.send(theirs, {"type": "frame"})
            assert [message["type"] async for message in child.messages()] == ["opened"]
            assert await asyncio.wait_for(child.wait(), 30) == -signal.SIGKILL

    asyncio.run(run())
