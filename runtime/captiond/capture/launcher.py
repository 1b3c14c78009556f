"""Starts child processes: forked from a zygote that has OpenCV loaded, or the GStreamer child by exec.

    launcher = Launcher()
    await launcher.start()
    child = await launcher.launch_capture(settings, password, ring, first_seq=0)
    async for message in child.messages(): ...
    status = await child.wait()

No threads, and neither numpy nor OpenCV in this process. Arguments, credentials among them, go through the child's own
socket: never through argv, an environment or the zygote.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import runtime
from runtime.captiond.capture import messages
from runtime.captiond.capture.backend import Backends
from runtime.captiond.capture.process import KILLED, Child
from runtime.captiond.capture.ring import Ring
from runtime.captiond.capture.start import CAPTURE, GST_CHILD, GST_PYTHON, PICTURES, arguments_of
from runtime.captiond.capture.waiting import within
from runtime.captiond.clock import Clock
from runtime.captiond.config.settings import SourceSettings
from runtime.errors import SourceError

_log = logging.getLogger(__name__)

CaptureChild = Child
_ANSWER_S = 30.0
_TRIES = 3
# One thread and few allocator arenas: what a child does not start costs no memory.
_LEAN = {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "2",
    "OPENCV_LOG_LEVEL": "SILENT",
}
_PRIVATE = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "CREDENTIALS_DIRECTORY", "LISTEN_FDS", "LISTEN_PID")


class Launcher:
    """Starts children and a zygote for them, and another zygote when that one dies."""

    def __init__(self, clock: Clock | None = None, *, gst_python: str = GST_PYTHON) -> None:
        self._clock = clock or Clock()
        self._backends = Backends(gst_python)
        self._gst_python = gst_python
        self._zygote: _Zygote | None = None
        self._children: set[Child] = set()
        self._closed = False

    async def start(self) -> None:
        """Start the zygote; it loads while others go on. Also done by the first `spawn`."""
        self._living()

    async def launch_capture(
        self, source: SourceSettings, password: str | None, ring: Ring, first_seq: int
    ) -> CaptureChild:
        """Start one attempt at a source. Its frames go to ``ring``, numbered from ``first_seq``.

        Messages: {"type": "opened", "width", "height", "fps": number or null, "what"}, {"type": "frame", "seq",
        "t_capture_ns"} (left out while the socket is full; the ring is the truth), {"type": "ended"} and {"type":
        "failed", "cause", "message"}. With ``every_frame`` the child waits for {"type": "next"} after each frame.
        Raises SourceError when no process can be started, or the backend that was asked for is not here.
        """
        pipeline = await self._backends.choose(source)
        arguments = arguments_of(source, password, first_seq, pipeline)
        if pipeline is not None:
            return self._exec_gstreamer(arguments, ring)
        return await self.spawn(CAPTURE, arguments, [ring.fd])

    async def launch_pictures(self, arguments: Mapping[str, object], fds: Sequence[int] = ()) -> Child:
        """Start a process that decodes, draws and encodes pictures."""
        return await self.spawn(PICTURES, arguments, fds)

    async def spawn(self, kind: str, arguments: Mapping[str, object], fds: Sequence[int] = ()) -> Child:
        """Fork a child that runs ``main(socket, fds, arguments)`` of the module ``kind``, which the zygote must know.

        ``fds`` stay open here. Raises SourceError when the zygote refuses or cannot be started.
        """
        for _ in range(_TRIES):
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            try:
                messages.send(ours, {"type": "start", "arguments": arguments})
                with theirs:
                    child = await self._fork(kind, ours, [theirs.fileno(), *fds])
            except BaseException:
                ours.close()
                raise
            if child is not None:
                return self._kept(child)
            ours.close()
        raise SourceError(
            f"the process that starts captures died {_TRIES} times in a row",
            hint="see what it wrote to the log; free some memory",
        )

    def processes(self) -> dict[str, list[int]]:
        """Process ids by kind: "zygote", "capture", "pictures"."""
        found: dict[str, list[int]] = {"zygote": [], "capture": [], "pictures": []}
        if self._zygote is not None and not self._zygote.dead:
            found["zygote"].append(self._zygote.pid)
        for child in self._children:
            found["capture" if child.kind == CAPTURE else "pictures"].append(child.pid)
        return found

    async def close(self) -> None:
        """Kill all children and the zygote, and wait for them. Idempotent."""
        self._closed = True
        children = list(self._children)
        for child in children:
            child.kill()
        zygote, self._zygote = self._zygote, None
        if zygote is not None:
            await zygote.close()
        for child in children:
            await child.wait()

    def _living(self) -> _Zygote:
        if self._closed:
            raise SourceError("the launcher is closed")
        if self._zygote is None or self._zygote.dead:
            if self._zygote is not None:
                _log.warning("the process that starts captures died; another one is started")
            self._zygote = _Zygote()
        return self._zygote

    async def _fork(self, kind: str, ours: socket.socket, fds: list[int]) -> Child | None:
        """Ask the zygote; None when it is dead or does not answer."""
        zygote = self._living()
        try:
            return await within(self._clock, _ANSWER_S, zygote.ask(kind, ours, fds))
        except TimeoutError:
            zygote.kill()
            return None

    def _exec_gstreamer(self, arguments: Mapping[str, object], ring: Ring) -> Child:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            messages.send(ours, {"type": "start", "arguments": arguments})
            with theirs:
                process = _popen([self._gst_python, "-I", str(GST_CHILD)], [theirs.fileno(), ring.fd], environment())
        except BaseException:
            ours.close()
            raise
        return self._kept(Child(CAPTURE, process.pid, os.pidfd_open(process.pid), ours, process.wait))

    def _kept(self, child: Child) -> Child:
        self._children.add(child)
        child.when_ended(self._children.discard)
        return child


class _Zygote:
    """One zygote process and the requests that it has not answered."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, "-m", "runtime.captiond.capture.zygote"]
            self._process = _popen(command, [theirs.fileno()], environment())
        ours.setblocking(False)
        self._sock = ours
        self.dead = False
        self._numbers = itertools.count(1)
        self._asked: dict[int, tuple[asyncio.Future[Child | None], str, socket.socket]] = {}
        self._children: dict[int, Child] = {}
        self._loop.add_reader(ours.fileno(), self._answered)

    def ask(self, kind: str, sock: socket.socket, fds: Sequence[int]) -> asyncio.Future[Child | None]:
        """Ask for a child whose control socket has the other end ``sock``. None: the zygote died meanwhile."""
        answer: asyncio.Future[Child | None] = self._loop.create_future()
        number = next(self._numbers)
        self._asked[number] = (answer, kind, sock)
        try:
            messages.send(self._sock, {"type": "spawn", "id": number, "kind": kind}, fds)
        except OSError:  # gone, or it has not read for long
            self._end()
        return answer

    @property
    def pid(self) -> int:
        """Its number."""
        return self._process.pid

    def kill(self) -> None:
        """Its children go with it."""
        self._process.send_signal(signal.SIGKILL)
        self._end()

    async def close(self) -> None:
        """End it and wait."""
        self._end()
        self._process.kill()
        self._process.wait()

    def _answered(self) -> None:
        try:
            received = messages.receive(self._sock, 1)
        except BlockingIOError:
            return
        except (OSError, messages.MessageError):
            received = None
        if received is None:
            self._end()
            return
        message, fds = received
        number, status = message.get("id"), message.get("status")
        if message["type"] == "exited" and isinstance(number, int) and isinstance(status, int):
            child = self._children.pop(number, None)
            if child is not None:
                child.exited(status)
        elif isinstance(number, int) and number in self._asked:
            self._settle(number, message, fds)
            return
        for fd in fds:
            os.close(fd)

    def _settle(self, number: int, message: messages.Message, fds: list[int]) -> None:
        answer, kind, sock = self._asked.pop(number)
        pid = message.get("pid")
        if message["type"] != "spawned" or not fds or not isinstance(pid, int):
            if not answer.done():
                answer.set_exception(SourceError(str(message.get("message"))))
            return
        if answer.done():  # nobody waits for it any more
            signal.pidfd_send_signal(fds[0], signal.SIGKILL)
            os.close(fds[0])
            return
        child = self._children[number] = Child(kind, pid, fds[0], sock)
        answer.set_result(child)

    def _end(self) -> None:
        """The zygote is gone, and its children with it."""
        if self.dead:
            return
        self.dead = True
        self._loop.remove_reader(self._sock.fileno())
        self._sock.close()
        self._process.kill()
        self._process.wait()
        for answer, _, _ in self._asked.values():
            if not answer.done():
                answer.set_result(None)
        for child in self._children.values():
            child.kill()
            child.exited(KILLED)
        self._asked.clear()
        self._children.clear()


def environment() -> dict[str, str]:
    """The environment of children: ours, lean, without what is meant for this process alone."""
    own = {name: value for name, value in os.environ.items() if name not in _PRIVATE}
    paths = [str(Path(runtime.__file__).parents[1]), *filter(None, [own.get("PYTHONPATH")])]
    return own | _LEAN | {"PYTHONPATH": os.pathsep.join(paths)}


def _popen(command: list[str], fds: list[int], env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            [*command, *map(str, fds)],
            pass_fds=fds,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env=env,
            start_new_session=True,
        )
    except OSError as problem:
        raise SourceError(
            f"{command[0]} cannot be started ({problem.strerror})", hint="check that it is there"
        ) from problem
