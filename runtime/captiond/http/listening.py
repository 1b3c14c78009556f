"""Where the server listens, and how connections come in: few enough, TLS handshakes counted too."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import ssl
from collections.abc import Callable

from runtime.captiond.clock import Clock
from runtime.captiond.config import ServerSettings
from runtime.captiond.config.check import is_loopback
from runtime.captiond.http.connection import Connection
from runtime.errors import ConfigError, NetworkError

_log = logging.getLogger(__name__)

BACKLOG = 128
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_EXHAUSTED_S = 0.5
_FULL = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


def listen(server: ServerSettings) -> socket.socket:
    """A listening socket. Raises ConfigError (no address, other machines without a key), NetworkError (port taken)."""
    if not server.keys and not is_loopback(server.listen):
        raise ConfigError(
            f"server.listen is {server.listen!r}, which other machines reach, and there is no API key",
            hint="make one with vlm-captiond --new-key NAME, or listen on 127.0.0.1",
        )
    host = "127.0.0.1" if server.listen == "localhost" else server.listen
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, server.port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST | socket.AI_PASSIVE
        )[0]
    except socket.gaierror:
        raise ConfigError(f"server.listen is {server.listen!r}, which is no IP address") from None
    try:
        listener = socket.create_server((str(address[0]), server.port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise NetworkError(
            f"server.listen: {server.listen} port {server.port} cannot be taken: {error.strerror}",
            hint="another program has it, perhaps another vlm-captiond: set server.port",
        ) from None
    listener.setblocking(False)
    return listener


def tls_context(server: ServerSettings) -> ssl.SSLContext | None:
    """TLS 1.2 or newer by the files of the settings, None without them. Raises ConfigError naming the files."""
    if server.certificate_file is None and server.private_key_file is None:
        return None
    if server.certificate_file is None or server.private_key_file is None:
        raise ConfigError("server: certificate_file and private_key_file belong together, one of them is missing")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(server.certificate_file, server.private_key_file, password=lambda: "")
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"server.certificate_file {server.certificate_file} and server.private_key_file "
            f"{server.private_key_file}: {error.strerror or 'no matching pair'}",
            hint="both are PEM, the key is not encrypted, and this user can read them",
        ) from None
    return context


class Acceptor:
    """Takes connections from a listening socket, as long as there are fewer than ``limit``.

    When there are as many, the one that has waited longest for a request of its client gives way; when all are busy,
    the new one gets 503. ``make`` gives a connection's protocol; ``context`` may be replaced while it runs.
    """

    def __init__(
        self, listener: socket.socket, make: Callable[[], Connection], limit: int, clock: Clock, handshake_s: float
    ) -> None:
        self.context: ssl.SSLContext | None = None
        self.connections: dict[Connection, None] = {}
        self._listener, self._make, self._limit = listener, make, limit
        self._clock, self._handshake_s = clock, handshake_s
        self._starting: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Accept until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                plug, _ = await loop.sock_accept(self._listener)
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    _log.warning("no connection can be taken: %s", error.strerror)
                    await self._clock.sleep(_EXHAUSTED_S)
                continue
            if not self._room():
                self._turn_away(plug)
                continue
            task = loop.create_task(self._start(plug))
            self._starting.add(task)
            task.add_done_callback(self._starting.discard)

    async def close(self) -> None:
        """Stop what is half way in."""
        self._listener.close()
        for task in self._starting:
            task.cancel()
        await asyncio.gather(*self._starting, return_exceptions=True)

    async def _start(self, plug: socket.socket) -> None:
        plug.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        loop, context = asyncio.get_running_loop(), self.context
        try:
            if context is None:
                await loop.connect_accepted_socket(self._protocol, plug)
            else:
                await loop.connect_accepted_socket(
                    self._protocol, plug, ssl=context, ssl_handshake_timeout=self._handshake_s
                )
        except (OSError, asyncio.TimeoutError) as error:  # ssl.SSLError is an OSError
            _log.debug("a connection did not begin: %s", error)
            plug.close()
        except asyncio.CancelledError:
            plug.close()
            raise

    def _protocol(self) -> Connection:
        connection = self._make()
        connection.register(self.connections)
        return connection

    def _room(self) -> bool:
        if len(self.connections) + len(self._starting) < self._limit:
            return True
        idle = [
            (connection.idle_since_ns, number, connection)
            for number, connection in enumerate(self.connections)
            if connection.idle_since_ns is not None
        ]
        if not idle:
            return False
        min(idle)[2].abort()
        return True

    def _turn_away(self, plug: socket.socket) -> None:
        if self.context is None:
            try:
                plug.send(_FULL)
            except OSError as error:
                _log.debug("a connection too many: %s", error)
        plug.close()
