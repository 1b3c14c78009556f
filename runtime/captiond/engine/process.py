"""The engine's process: started by exec with one end of a socket pair, watched through a pidfd."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
from collections.abc import Sequence

EXIT_WAIT_S = 1.0
KILL_WAIT_S = 1.0
_STDERR = 2
_log = logging.getLogger(__name__)


class EngineProcess:
    """A child that is asked for by `start` and must be ended by `end`, however it dies."""

    def __init__(self, process: subprocess.Popen[bytes], pidfd: int) -> None:
        self._process = process
        self._pidfd = pidfd
        self._gone = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().add_reader(pidfd, self._died)

    @classmethod
    def start(cls, command: Sequence[str]) -> tuple[EngineProcess, socket.socket]:
        """Run ``command`` with ``--socket N`` behind it; the process, and our end of its socket. Raises OSError."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with theirs:
                process = subprocess.Popen(
                    [*command, "--socket", str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    stdout=_STDERR,  # standard output belongs to captions, whatever a library prints
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,  # Ctrl-C of a terminal is for the daemon
                )
        except BaseException:
            ours.close()
            raise
        return cls(process, os.pidfd_open(process.pid)), ours

    @property
    def pid(self) -> int:
        """Its process id, for people and metrics; signals go through `kill`."""
        return self._process.pid

    def kill(self) -> None:
        """SIGKILL; nothing when it is gone already."""
        if not self._gone.done():
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    async def wait(self) -> int:
        """Its exit status; a negative signal number when a signal ended it."""
        await asyncio.shield(self._gone)
        return self._process.returncode

    async def end(self) -> None:
        """Wait a second for it to leave by itself, then kill it. To be called once.

        A process that a driver keeps from dying is left behind after another second: nobody waits for it.
        """
        try:
            if not await self._gone_within(EXIT_WAIT_S):
                self.kill()
                if not await self._gone_within(KILL_WAIT_S):
                    _log.error("the engine's process %d does not die of SIGKILL and is left behind", self.pid)
        finally:
            self.kill()
            if not self._gone.done():
                asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)

    async def _gone_within(self, seconds: float) -> bool:
        await asyncio.wait([self._gone], timeout=seconds)
        return self._gone.done()

    def _died(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        self._process.wait()
        if not self._gone.done():
            self._gone.set_result(None)


def cause_of_exit(status: int) -> str:
    """One word for an exit status as `EngineProcess.wait` gives it: "SIGSEGV", "exit 1"."""
    if status >= 0:
        return f"exit {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"
