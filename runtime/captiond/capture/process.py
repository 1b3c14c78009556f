"""A child process as the daemon sees it: its messages, its end, and a way to end it that cannot hit another process."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence

from runtime.captiond.capture import messages
from runtime.captiond.capture.messages import Message

_log = logging.getLogger(__name__)

KILLED = -int(signal.SIGKILL)


class Child:
    """A running child process. Made by `runtime.captiond.capture.launcher`.

    The socket buffer of the kernel is the only queue, so a child that floods fills that and no more. When the process
    has ended nothing of it is open here; what it said last can still be read.
    """

    def __init__(
        self, kind: str, pid: int, pidfd: int, sock: socket.socket, reap: Callable[[], int] | None = None
    ) -> None:
        """``pidfd`` and ``sock`` belong to the child from here on. ``reap``: gets the exit status of our own child;
        without it, `exited` is called by whoever learns of it."""
        self.kind = kind
        self.pid = pid
        self._pidfd = pidfd
        self._sock = sock
        self._reap = reap
        self._loop = asyncio.get_running_loop()
        self._status: int | None = None
        self._ended: asyncio.Future[int] = self._loop.create_future()
        self._waiting: asyncio.Future[None] | None = None
        self._left: deque[Message] = deque()
        sock.setblocking(False)
        self._loop.add_reader(pidfd, self._dead)

    async def messages(self) -> AsyncIterator[Message]:
        """What the child says, until it closes its end. One reader. A packet that is no message gets it killed."""
        while True:
            while self._left:
                yield self._left.popleft()
            if self._sock.fileno() < 0:
                return
            message = self._receive()
            if message is not None:
                yield message
            elif self._sock.fileno() >= 0:
                await self._readable()

    def send(self, message: Mapping[str, object], fds: Sequence[int] = ()) -> None:
        """Hand the child a message and open files. Raises OSError when it is gone or does not read."""
        messages.send(self._sock, message, fds)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal; nothing when the process has ended."""
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    async def wait(self) -> int:
        """The exit status, negative for a signal; may be asked several times at once."""
        return await asyncio.shield(self._ended)

    def when_ended(self, callback: Callable[[Child], object]) -> None:
        """Call ``callback`` once the process is gone."""
        self._ended.add_done_callback(lambda _: callback(self))

    def exited(self, status: int) -> None:
        """The status was learnt elsewhere."""
        if self._status is None:
            self._status = status
            self._settle()

    def _receive(self) -> Message | None:
        """The next message; None when there is none now, or no more (then the socket is closed)."""
        try:
            received = messages.receive(self._sock)
        except BlockingIOError:
            return None
        except messages.MessageError as problem:
            _log.warning("process %d is killed: it sent %s", self.pid, problem)
            self.kill()
            received = None
        if received is None:
            self._close()
            return None
        return received[0]

    async def _readable(self) -> None:
        self._waiting = self._loop.create_future()
        self._loop.add_reader(self._sock.fileno(), self._wake)
        try:
            await self._waiting
        finally:
            self._waiting = None
            if self._sock.fileno() >= 0:
                self._loop.remove_reader(self._sock.fileno())

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def _dead(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._pidfd = -1
        while self._sock.fileno() >= 0 and (message := self._receive()) is not None:
            self._left.append(message)
        self._close()
        self._wake()
        if self._reap is not None:
            self._status = self._reap()
        self._settle()

    def _settle(self) -> None:
        if self._pidfd < 0 and self._status is not None and not self._ended.done():
            self._ended.set_result(self._status)

    def _close(self) -> None:
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock.fileno())
            self._sock.close()
