"""Peers written with asyncio run in a thread of their own, so that a busy or stopped test does not hold them up."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, TypeVar

T = TypeVar("T")
_WAIT_S = 30.0


class LoopingPeer:
    """A TCP server on a free port of 127.0.0.1: subclasses write `serve`, called for each connection.

    `refuse` takes the listening socket away and `accept` brings it back on the same port; `reset_all` ends all
    connections by RST.
    """

    def __init__(self) -> None:
        self.port = 0
        self.connections = 0
        self._server: asyncio.AbstractServer | None = None
        self._open: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection; it is closed when this returns or fails with OSError or EOFError."""
        raise AssertionError("a subclass serves")

    def refuse(self) -> None:
        """Connections are refused from now on; those that are open go on."""
        self._call(self._stop_listening())

    def accept(self) -> None:
        """Listen, on the port that it had before."""
        self._call(self._listen())

    def reset_all(self) -> None:
        """End all connections, by RST."""
        self._call(self._reset_all())

    def __enter__(self: PeerT) -> PeerT:
        # Not earlier: a peer that is made and never entered has nothing to close.
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=type(self).__name__, daemon=True)
        self._thread.start()
        self.accept()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.refuse()
        self.reset_all()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_WAIT_S)
        self._loop.close()

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_WAIT_S)

    async def _listen(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port, reuse_address=True)
            self.port = self._server.sockets[0].getsockname()[1]

    async def _stop_listening(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
            await asyncio.sleep(0)

    async def _reset_all(self) -> None:
        for _ in range(10):  # connections that were accepted this instant get their task first
            await asyncio.sleep(0)
        tasks = list(self._open)
        for task, writer in list(self._open.items()):
            reset(writer)
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open[task] = writer
        self.connections += 1
        try:
            with contextlib.suppress(OSError, EOFError, asyncio.CancelledError):
                await self.serve(reader, writer)
        finally:
            writer.close()
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await writer.wait_closed()
            del self._open[task]


PeerT = TypeVar("PeerT", bound=LoopingPeer)


def reset(writer: asyncio.StreamWriter) -> None:
    """Close a connection by RST and not by FIN."""
    found = writer.get_extra_info("socket")
    if found is not None and found.fileno() >= 0:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
