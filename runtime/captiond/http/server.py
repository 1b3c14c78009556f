"""The HTTP server: routes, their gate, the sockets, and the tasks behind them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from aiohttp import web

from runtime.captiond.clock import Clock
from runtime.captiond.config import ServerSettings
from runtime.captiond.config.check import is_loopback
from runtime.captiond.exposition import Exposition
from runtime.captiond.http.connection import SWEEP_S, Connection, ConnectionLimits
from runtime.captiond.http.control import Control
from runtime.captiond.http.feed import Feed
from runtime.captiond.http.gate import Gate, check_routes
from runtime.captiond.http.health import Health
from runtime.captiond.http.hosts import Names
from runtime.captiond.http.keys import KeyRing, Who
from runtime.captiond.http.latest import Latest
from runtime.captiond.http.listening import Acceptor, listen, tls_context
from runtime.captiond.http.login import Login
from runtime.captiond.http.page import Page
from runtime.captiond.http.pictures import Pictures
from runtime.captiond.http.route import Handler, Route
from runtime.captiond.http.services import Services
from runtime.captiond.http.state import State
from runtime.captiond.http.streams import Streams
from runtime.captiond.http.watchers import Watchers
from runtime.captiond.openai.routes import routes as openai_routes
from runtime.errors import ConfigError

_log = logging.getLogger(__name__)


class HttpServer:
    """Serves until `stop`. ``further``: routes besides its own, declared like them."""

    def __init__(self, config: ServerSettings, services: Services, clock: Clock, further: Sequence[Route] = ()) -> None:
        self._config, self._services, self._clock = config, services, clock
        services.server = config
        self._latest = Latest()
        self._watchers = Watchers(lambda: services.server.max_watchers)
        self._pictures = Pictures(services, self._latest, self._watchers)
        self._further = tuple(further)
        self._routes: dict[web.AbstractRoute, Route] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._runner: web.AppRunner | None = None
        self._acceptor: Acceptor | None = None
        self._feed: Feed | None = None
        self._gate: Gate | None = None
        self.port = 0

    @property
    def url(self) -> str:
        """Where it answers, for people."""
        host = self._config.listen
        scheme = "http" if self._config.certificate_file is None else "https"
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{self.port}/"

    @property
    def routes(self) -> list[Route]:
        """What is served, once it has started."""
        return list(self._routes.values())

    async def start(self) -> str:
        """Listen; the address for people. Raises ConfigError: see `listen` and `tls_context`, and routes that do not
        declare who may ask them."""
        context = tls_context(self._config)
        listener = listen(self._config)
        try:
            self.port = int(listener.getsockname()[1])
            self._gate = Gate(self._services, self._names(self._config), self._routes)
            self._feed = Feed(self._services)
            app = self._app(self._gate, self._feed)
            # An answer whose client is gone is cancelled: its slot of the engine is free for the next.
            self._runner = web.AppRunner(app, handler_cancellation=True, access_log=None)
            await self._runner.setup()
        except BaseException:
            listener.close()
            raise
        self._acceptor = Acceptor(
            listener, self._connection, self._config.max_connections, self._clock, self._config.header_timeout_s
        )
        self._acceptor.context = context
        self._services.bus.tap(self._latest.event)
        self._services.bus.tap(self._services.metrics.event)
        loop = asyncio.get_running_loop()
        runs = (self._acceptor.run(), self._feed.run(), self._feed.heartbeat(), self._sweep())
        self._tasks = [loop.create_task(run) for run in runs]
        return self.url

    async def stop(self, timeout_s: float = 2.0) -> None:
        """Stop listening, let streams end and answers finish for half of ``timeout_s``, then cut them off."""
        if self._runner is None or self._acceptor is None or self._feed is None:
            return
        self._tasks[0].cancel()
        await self._acceptor.close()
        self._feed.close()
        self._watchers.dismiss()
        for connection in list(self._acceptor.connections):
            if connection.idle_since_ns is not None:
                connection.force_close()
        try:
            await asyncio.wait_for(self._finished(self._acceptor), timeout_s / 2)
        except asyncio.TimeoutError:
            _log.info("%d connections are cut off", len(self._acceptor.connections))
            for connection in list(self._acceptor.connections):
                connection.abort()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        try:
            await asyncio.wait_for(self._runner.cleanup(), timeout_s / 2)
        except asyncio.TimeoutError:
            _log.warning("a request did not end")
        self._runner = None

    def reload(self, config: ServerSettings) -> None:
        """Take new settings, all or none; what needs a restart stays as it was. Keys that are gone, or may less, lose
        their streams. Raises ConfigError."""
        assert self._gate is not None and self._acceptor is not None
        if not config.keys and not is_loopback(self._config.listen):
            raise ConfigError(f"server.listen is {self._config.listen!r}, and the new settings have no API key")
        self._acceptor.context = tls_context(self._config)
        self._services.server = config
        self._gate.names = self._names(config)
        self._gate.keys = KeyRing(config.keys)
        self._watchers.dismiss(lambda watcher: not self._still_may(watcher.who))

    def _still_may(self, who: Who) -> bool:
        assert self._gate is not None
        now = self._gate.keys.still(who)
        return now is not None and who.may <= now.may

    def _names(self, config: ServerSettings) -> Names:
        return Names(
            scheme="http" if self._config.certificate_file is None else "https",
            port=self.port,
            loopback=is_loopback(self._config.listen) or self._config.listen in ("0.0.0.0", "::"),
            hosts=frozenset(host.lower() for host in config.hosts),
            origins=frozenset(origin.lower() for origin in config.origins),
        )

    def _app(self, gate: Gate, feed: Feed) -> web.Application:
        @web.middleware
        async def let_in(request: web.Request, handler: Handler) -> web.StreamResponse:
            return await gate.answer(request, handler)

        app = web.Application(middlewares=[let_in], client_max_size=self._config.max_body_bytes)
        app.on_response_prepare.append(gate.prepare)
        routes = self._all_routes(gate, feed)
        check_routes(routes)
        for route in routes:
            self._routes[app.router.add_route(route.method, route.path, route.handler)] = route
            if route.method == "GET" and not route.stream:
                self._routes[app.router.add_route("HEAD", route.path, route.handler)] = route
        return app

    def _all_routes(self, gate: Gate, feed: Feed) -> list[Route]:
        services = self._services
        exposition = Exposition(services, self._latest, self._open_connections, self._watchers.counts)
        control = Control(services)
        return [
            *Page().routes(),
            *Health(services, self._latest, exposition).routes(),
            *State(services, self._latest).routes(),
            *self._pictures.routes(),
            *control.routes(),
            *Streams(services, feed, self._watchers, control).routes(),
            *Login(gate, self._watchers, self._clock).routes(),
            *openai_routes(services),
            *self._further,
        ]

    def _connection(self) -> Connection:
        assert self._runner is not None and self._runner.server is not None
        config = self._config
        limits = ConnectionLimits(config.header_timeout_s, config.body_timeout_s, config.idle_timeout_s)
        return Connection(self._runner.server, asyncio.get_running_loop(), limits, self._clock)

    def _open_connections(self) -> int:
        return 0 if self._acceptor is None else len(self._acceptor.connections)

    async def _finished(self, acceptor: Acceptor) -> None:
        while acceptor.connections:
            await asyncio.sleep(0.01)
            for connection in list(acceptor.connections):
                if connection.idle_since_ns is not None:
                    connection.force_close()

    async def _sweep(self) -> None:
        """Look at every connection from time to time, and cut off those that take too long."""
        assert self._acceptor is not None
        while True:
            await self._clock.sleep(SWEEP_S)
            now_ns = self._clock.now_ns()
            for connection in list(self._acceptor.connections):
                cause = connection.check(now_ns)
                if cause is not None:
                    self._services.metrics.connections_closed.add((cause,))
