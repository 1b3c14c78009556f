"""Clients that stay: event streams, WebSockets, live pictures. Few enough, and let go when their key goes."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from aiohttp import web

from runtime.captiond.http.connection import Connection
from runtime.captiond.http.errors import HttpError
from runtime.captiond.http.gate import connection_of, who_of
from runtime.captiond.http.keys import Who

# The kernel would buffer megabytes of a client that does not read. What is old when it is read is of no use.
SEND_BUFFER_BYTES = 131_072
KINDS = ("sse", "websocket", "mjpeg")


class Watcher:
    """One client that stays until it leaves or `gone` is set. ``missed``: what it was too slow for."""

    def __init__(self, kind: str, who: Who, connection: Connection) -> None:
        self.kind, self.who, self.connection = kind, who, connection
        self.gone = asyncio.Event()

    @property
    def full(self) -> bool:
        """Whether it reads more slowly than it is written to."""
        return self.connection.full

    def write(self, data: bytes) -> None:
        """Send bytes as they are; never waits. Whoever is too slow for too long is cut off by the server."""
        transport = self.connection.transport
        if transport is not None and not transport.is_closing():
            transport.write(data)


class Watchers:
    """All of them; ``limit`` is asked at each entry."""

    def __init__(self, limit: Callable[[], int]) -> None:
        self._limit = limit
        self._watchers: set[Watcher] = set()

    def counts(self) -> dict[str, int]:
        """How many of each kind."""
        found = Counter(watcher.kind for watcher in self._watchers)
        return {kind: found[kind] for kind in KINDS}

    @contextmanager
    def enter(self, request: web.Request, kind: str) -> Iterator[Watcher]:
        """Be a watcher. Raises HttpError 503 when there are too many."""
        limit = self._limit()
        if len(self._watchers) >= limit:
            raise HttpError(
                503,
                f"{limit} clients watch already (server.max_watchers)",
                kind="overloaded_error",
                code="too_many_watchers",
                headers={"Retry-After": "5"},
            )
        connection = connection_of(request)
        plug = None if request.transport is None else request.transport.get_extra_info("socket")
        if plug is not None:
            plug.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        watcher = Watcher(kind, who_of(request), connection)
        self._watchers.add(watcher)
        try:
            yield watcher
        finally:
            self._watchers.discard(watcher)

    def dismiss(self, leave: Callable[[Watcher], bool] = lambda _: True) -> None:
        """Let those go for whom ``leave`` says so: at the end, or because their key is no longer valid."""
        for watcher in self._watchers:
            if leave(watcher):
                watcher.gone.set()
