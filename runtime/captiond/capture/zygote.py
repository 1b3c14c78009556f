"""The process that children are forked from: numpy and OpenCV are loaded here once, and their memory is shared.

    python -m runtime.captiond.capture.zygote <number of its open socket>

It has one thread and opens nothing that a stranger sends. A request is a packet {"type": "spawn", "id", "kind"} with
open files: the child's own socket first. The child reads its arguments from that socket, so that no secret passes
through here. Answers: {"type": "spawned", "id", "pid"} with a pidfd, {"type": "refused", "id", "message"}, and
{"type": "exited", "id", "status"} (as `subprocess.Popen.returncode`). It ends, with all children, when its socket does.
"""

from __future__ import annotations

import gc
import importlib
import logging
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Sequence

from runtime.captiond.capture import confine, messages
from runtime.captiond.frugal import give_memory_back, let_go_of_code

# What may be started, the name that `ps` shows, and how early it goes when the machine's memory ends.
KINDS = {
    "runtime.captiond.capture.child": ("vlm-capture", 900),
    "runtime.captiond.pictures.child": ("vlm-pictures", 800),
}
_PRELOADED = ("numpy", "cv2", "runtime.sources", "runtime.captiond.capture.child")

_log = logging.getLogger(__name__)


class Zygote:
    """Forks on request, watches and reports its children."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self._children: dict[int, tuple[int, int]] = {}  # pidfd: (pid, id of the request)

    def serve(self) -> None:
        """Work until the daemon closes its end."""
        while True:
            for fd, _ in self._poll.poll():
                if fd in self._children:
                    self._reap(fd)
                elif not self._request():
                    self._end()
                    return

    def _request(self) -> bool:
        try:
            received = messages.receive(self._sock, messages.MAX_FDS)
        except messages.MessageError:
            _log.exception("the daemon's request is not understood")
            return True
        if received is None:
            return False
        message, fds = received
        try:
            self._spawn(message, fds)
        finally:
            for fd in fds:
                os.close(fd)
        return True

    def _spawn(self, message: messages.Message, fds: list[int]) -> None:
        number, kind = message.get("id"), message.get("kind")
        if not isinstance(number, int) or not isinstance(kind, str) or kind not in KINDS or not fds:
            self._answer({"type": "refused", "id": number, "message": f"nothing of the kind {kind!r} is started here"})
            return
        parent = os.getpid()
        try:
            pid = os.fork()
        except OSError as problem:
            self._answer({"type": "refused", "id": number, "message": f"no process: {problem.strerror}"})
            return
        if pid == 0:
            _run(kind, fds, parent)
        pidfd = os.pidfd_open(pid)
        self._children[pidfd] = (pid, number)
        self._poll.register(pidfd, select.POLLIN)
        self._answer({"type": "spawned", "id": number, "pid": pid}, [pidfd])

    def _reap(self, pidfd: int) -> None:
        pid, number = self._children.pop(pidfd)
        self._poll.unregister(pidfd)
        os.close(pidfd)
        _, status = os.waitpid(pid, 0)
        self._answer({"type": "exited", "id": number, "status": os.waitstatus_to_exitcode(status)})

    def _end(self) -> None:
        for pidfd in self._children:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        for pid, _ in self._children.values():
            os.waitpid(pid, 0)

    def _answer(self, message: messages.Message, fds: Sequence[int] = ()) -> None:
        try:
            messages.send(self._sock, message, fds)
        except OSError:  # the daemon is gone; the next poll sees the end
            _log.debug("an answer was lost")


def _run(kind: str, fds: list[int], parent: int) -> None:
    """The life of a child; does not return."""
    status = 1
    try:
        name, oom_score_adj = KINDS[kind]
        confine.confine(name, parent=parent, oom_score_adj=oom_score_adj)
        confine.keep_only(fds)
        with socket.socket(fileno=fds[0]) as sock:
            received = messages.receive(sock)
            if received is not None:
                status = importlib.import_module(kind).main(sock, fds[1:], received[0]["arguments"])
    except Exception as problem:  # noqa: BLE001 - top of a process: the parent learns of it by its exit status
        traceback.print_exception(problem)
    finally:
        sys.stderr.flush()
        os._exit(status)


def main(arguments: Sequence[str]) -> int:
    """Load what children use, then serve."""
    give_memory_back()
    confine.die_with_parent()
    sock = socket.socket(fileno=int(arguments[0]))
    os.set_inheritable(sock.fileno(), False)
    for name in _PRELOADED:
        try:
            importlib.import_module(name)
        except ImportError as problem:  # a child that needs it says so to whoever asked for it
            _log.warning("%s cannot be loaded: %s", name, problem)
    gc.collect()
    gc.freeze()
    let_go_of_code()
    Zygote(sock).serve()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
