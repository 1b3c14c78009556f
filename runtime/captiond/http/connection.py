"""One HTTP connection with its time limits: heads and bodies are timed as a whole, and who does not read is cut off."""

from __future__ import annotations

import asyncio
import socket
import struct
from dataclasses import dataclass

from aiohttp import web

from runtime.captiond.clock import NS_PER_S, Clock
from runtime.captiond.http.keys import NOBODY

# A client whose buffer is full and who does not read for this long is cut off. With the sweep: within 10 s.
STALL_S = 8.0
SWEEP_S = 0.5
# What may come before a request is seen: the parser's own limits end sooner, this one holds whatever parser it is.
MAX_HEAD_BYTES = 1 << 20
LINGER_S = 2.0
_REFUSALS = {408: b"Request Timeout", 503: b"Service Unavailable", 431: b"Request Header Fields Too Large"}


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Seconds; see `ServerSettings`."""

    header_timeout_s: float
    body_timeout_s: float
    idle_timeout_s: float


class Connection(web.RequestHandler):
    """aiohttp's protocol, which notes what it waits for. `check` cuts off whoever takes too long."""

    def __init__(
        self, server: web.Server, loop: asyncio.AbstractEventLoop, limits: ConnectionLimits, clock: Clock
    ) -> None:
        super().__init__(
            server,
            loop=loop,
            access_log=None,  # type: ignore[arg-type]  # it would log paths and queries as clients write them
            keepalive_timeout=limits.idle_timeout_s + 1.0,
            auto_decompress=False,  # a compressed body is refused, never unpacked
            lingering_time=LINGER_S,
        )
        self._limits, self._clock = limits, clock
        now = clock.now_ns()
        self._handling = 0
        self._waiting_since_ns = now
        self._head_since_ns: int | None = now
        self._head_bytes = 0
        self._body_until_ns: int | None = None
        self._full_since_ns: int | None = None
        self._deaf = False
        self._open: dict[Connection, None] | None = None
        self._socket: asyncio.Transport | None = None
        # Of the request that is being answered: who asks, and the response whose head was written.
        self.who = NOBODY
        self.begun: web.StreamResponse | None = None

    def register(self, connections: dict[Connection, None]) -> None:
        """Stand in ``connections`` while the connection lives."""
        self._open = connections

    # What aiohttp and asyncio tell

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._socket = transport
        if self._open is not None:
            self._open[self] = None
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._open is not None:
            self._open.pop(self, None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        if self._handling == 0:
            if self._head_since_ns is None:
                self._head_since_ns, self._head_bytes = self._clock.now_ns(), 0
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self.refuse(431)
                return
        super().data_received(data)

    def pause_writing(self) -> None:
        self._full_since_ns = self._clock.now_ns()
        super().pause_writing()

    def resume_writing(self) -> None:
        self._full_since_ns = None
        super().resume_writing()

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """A request that the parser refused, or a fault outside the gate: a plain word, nothing of the input."""
        text = "bad request" if status < 500 else "internal error"
        headers = {"X-Content-Type-Options": "nosniff", "Server": "jetson-vlm"}
        response = web.Response(status=status, text=text, headers=headers)
        response.force_close()
        return response

    # What the routes tell

    def begin(self) -> None:
        """A whole head has come; its request is being answered."""
        self._handling += 1
        self._head_since_ns = None
        self.who, self.begun = NOBODY, None

    def end(self) -> None:
        """The request has its answer."""
        self._handling -= 1
        self._body_until_ns = None
        self._waiting_since_ns = self._clock.now_ns()

    def expect_body(self) -> None:
        """A body must have come, as a whole, within the time for bodies."""
        self._body_until_ns = self._clock.now_ns() + round(self._limits.body_timeout_s * NS_PER_S)

    def body_came(self) -> None:
        """The body is there."""
        self._body_until_ns = None

    def hang_up_hearing(self) -> None:
        """Nothing that comes from now on is looked at: of a refused body, of a client that only listens."""
        self._deaf = True

    @property
    def full(self) -> bool:
        """Whether the client reads more slowly than it is written to."""
        return self._full_since_ns is not None

    @property
    def idle_since_ns(self) -> int | None:
        """Since when it waits for a request or the rest of its head, None while one is answered."""
        if self._handling:
            return None
        return self._waiting_since_ns if self._head_since_ns is None else self._head_since_ns

    # What time tells

    def check(self, now_ns: int) -> str | None:
        """Cut off whoever takes too long; says why: "stalled", "body", "head" or "idle"."""
        limits = self._limits
        if self._full_since_ns is not None and now_ns - self._full_since_ns >= STALL_S * NS_PER_S:
            self.abort()
            return "stalled"
        if self._body_until_ns is not None and now_ns >= self._body_until_ns:
            self.refuse(408)
            return "body"
        if self._handling:
            return None
        if self._head_since_ns is not None and now_ns - self._head_since_ns >= limits.header_timeout_s * NS_PER_S:
            self.refuse(408)
            return "head"
        if self._head_since_ns is None and now_ns - self._waiting_since_ns >= limits.idle_timeout_s * NS_PER_S:
            self.force_close()
            return "idle"
        return None

    def refuse(self, status: int) -> None:
        """Say no without a request, and hang up."""
        self._deaf = True
        if self._socket is not None and not self._socket.is_closing():
            reason = _REFUSALS[status]
            self._socket.write(b"HTTP/1.1 %d %s\r\nConnection: close\r\nContent-Length: 0\r\n\r\n" % (status, reason))
        self.force_close()

    def abort(self) -> None:
        """Drop the connection with what was not sent: a reset, or the kernel would keep it for minutes for a client
        that does not read."""
        if self._socket is not None:
            plug = self._socket.get_extra_info("socket")
            if plug is not None and plug.fileno() >= 0:
                plug.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._socket.abort()
