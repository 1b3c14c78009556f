"""Messages to systemd: readiness, status, watchdog. Does nothing where no service manager listens.

Source of the protocol: sd_notify(3), datagrams on the socket that ``NOTIFY_SOCKET`` names.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping

from runtime.captiond.text import one_line

_log = logging.getLogger(__name__)
_MICROSECONDS = 1_000_000


class Notifier:
    """Sends states to the service manager of an environment (``NOTIFY_SOCKET``, ``WATCHDOG_USEC``)."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._failed = False
        self.watchdog_s = _watchdog_s(environment)

    def ready(self, status: str) -> None:
        """The service has started."""
        self._send("READY=1", f"STATUS={one_line(status, 200)}")

    def status(self, status: str, *, extend_s: float | None = None) -> None:
        """What it does now; while it starts, ``extend_s`` more seconds until it must be ready or say more."""
        lines = [f"STATUS={one_line(status, 200)}"]
        if extend_s is not None:
            lines.append(f"EXTEND_TIMEOUT_USEC={round(extend_s * _MICROSECONDS)}")
        self._send(*lines)

    def alive(self) -> None:
        """The work moves on: call it from progress, never from a timer alone."""
        self._send("WATCHDOG=1")

    def reloading(self, now_ns: int) -> None:
        """A reload begins at CLOCK_MONOTONIC ``now_ns``; `ready` ends it."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={now_ns // 1000}")

    def stopping(self) -> None:
        """The service ends."""
        self._send("STOPPING=1")

    def _send(self, *lines: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
                channel.setblocking(False)
                channel.sendto("\n".join(lines).encode(), self._address)
        except OSError as problem:
            if not self._failed:
                _log.warning("the service manager does not take messages: %s", problem.strerror or problem)
            self._failed = True


def _watchdog_s(environment: Mapping[str, str]) -> float | None:
    """Seconds until systemd kills a silent service; None without a watchdog, or when it is another process's."""
    text = environment.get("WATCHDOG_USEC", "")
    mine = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    if not mine or not text.isdecimal() or int(text) == 0:
        return None
    return int(text) / _MICROSECONDS
