"""GET /events and GET /ws: the daemon's events as they happen.

Server-sent events: ``event: <type>``, ``data: <JSON>``, ``id: <boot>-<n>``; first ``event: hello``, also after each
reconnection: with ``Last-Event-ID`` the whole events since then are sent again (256 are kept, pieces of captions are
not), and ``"missed": true`` says that more was lost. ``event: missed`` tells a slow client how many events it lost.
WebSocket: the same objects as texts, each with its ``id``; what the client sends is `control.command`.
"""

from __future__ import annotations

import asyncio

from aiohttp import HttpVersion11, WSMsgType, web

from runtime.captiond.events import EVENT_TYPES
from runtime.captiond.http.control import Control
from runtime.captiond.http.errors import HttpError
from runtime.captiond.http.feed import Choice, Feed, Framing, Listener, framed
from runtime.captiond.http.gate import who_of
from runtime.captiond.http.json_text import dump_json
from runtime.captiond.http.route import Route
from runtime.captiond.http.services import Services
from runtime.captiond.http.watchers import Watcher, Watchers

MAX_MESSAGE_BYTES = 65_536
PING_S = 20.0
RETRY = b"retry: 2000\n"
_TYPES = frozenset(kind.type for kind in EVENT_TYPES)
_MAX_NAMES = 64


class Streams:
    """Both routes."""

    def __init__(self, services: Services, feed: Feed, watchers: Watchers, control: Control) -> None:
        self._services, self._feed, self._watchers, self._control = services, feed, watchers, control

    def routes(self) -> list[Route]:
        """Their declarations. A WebSocket's control messages are permitted one by one."""
        return [
            Route("GET", "/events", self._events, ("read",), stream=True),
            Route("GET", "/ws", self._socket, ("read",), stream=True),
        ]

    async def _events(self, request: web.Request) -> web.StreamResponse:
        choice = self._choice(request)
        framing: Framing = "chunked" if request.version >= HttpVersion11 else "plain"
        with self._watchers.enter(request, "sse") as watcher:
            response = web.StreamResponse(
                headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
            )
            if framing == "chunked":
                response.enable_chunked_encoding()
            response.force_close()
            await response.prepare(request)
            await response.write(RETRY)
            watcher.connection.hang_up_hearing()
            # From here on the feed writes, which frames events once for all. Nothing is published in between.
            replayed, greeting = self._feed.replay(request.headers.get("Last-Event-ID"), choice)
            joined = Listener(watcher, choice, framing)
            watcher.write(framed(self._feed.greeting(greeting, framing), framing))
            self._feed.join(joined, replayed)
            try:
                await watcher.gone.wait()
            finally:
                self._feed.leave(joined)
        return response

    async def _socket(self, request: web.Request) -> web.StreamResponse:
        choice = self._choice(request)
        socket = web.WebSocketResponse(heartbeat=PING_S, max_msg_size=MAX_MESSAGE_BYTES, compress=False)
        if not socket.can_prepare(request):
            raise HttpError(
                426, "this path speaks WebSocket", code="upgrade_required", headers={"Upgrade": "websocket"}
            )
        with self._watchers.enter(request, "websocket") as watcher:
            await socket.prepare(request)
            replayed, greeting = self._feed.replay(request.query.get("last_id"), choice)
            watcher.write(self._feed.greeting(greeting, "websocket"))
            joined = Listener(watcher, choice, "websocket")
            self._feed.join(joined, replayed)
            closing = asyncio.create_task(_close_when_gone(socket, watcher))
            try:
                await self._listen(request, socket)
            finally:
                self._feed.leave(joined)
                closing.cancel()
        return socket

    async def _listen(self, request: web.Request, socket: web.WebSocketResponse) -> None:
        async for message in socket:
            if message.type is not WSMsgType.TEXT:
                await socket.close(code=1003, message=b"texts only")
                return
            reply = self._control.command(message.data, who_of(request))
            await socket.send_str(dump_json(reply))

    def _choice(self, request: web.Request) -> Choice:
        types, sources = _names(request, "types"), _names(request, "source")
        if types is not None and not types <= _TYPES:
            raise HttpError(400, f"types are {', '.join(sorted(_TYPES))}", param="types", code="unknown_type")
        if sources is not None and not sources <= set(self._services.sources):
            raise HttpError(404, "there is no such source", param="source", code="unknown_source")
        return Choice(types, sources)


async def _close_when_gone(socket: web.WebSocketResponse, watcher: Watcher) -> None:
    await watcher.gone.wait()
    await socket.close(code=1001, message=b"going away")


def _names(request: web.Request, key: str) -> frozenset[str] | None:
    """Names of a query: ``?key=a,b&key=c``. None when there are none."""
    given = [name for value in request.query.getall(key, []) for name in value.split(",") if name]
    if len(given) > _MAX_NAMES:
        raise HttpError(400, f"more than {_MAX_NAMES} names", param=key, code="too_many")
    return frozenset(given) or None
