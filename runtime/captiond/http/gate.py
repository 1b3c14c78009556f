"""What every request passes, streams and WebSockets included: names, browsers, keys, permissions, errors, headers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence

from aiohttp import web

from runtime.captiond.clock import NS_PER_S
from runtime.captiond.http.connection import Connection
from runtime.captiond.http.errors import HttpError, error_response, from_vlm_error
from runtime.captiond.http.hosts import Names, browser_problem, host_problem
from runtime.captiond.http.keys import EVERYBODY, NOBODY, KeyRing, Sessions, Throttle, Who
from runtime.captiond.http.route import Handler, Route
from runtime.captiond.http.services import Services
from runtime.errors import ConfigError, VlmError

_log = logging.getLogger(__name__)

MAX_HEADERS = 100
MAX_HEADER_BYTES = 32_768
SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Server": "jetson-vlm",
}
_FETCH_HEADERS = ("Origin", "Sec-Fetch-Site", "Sec-Fetch-Mode", "Sec-Fetch-Dest")


def who_of(request: web.Request) -> Who:
    """Who asks, as the gate found out."""
    return connection_of(request).who


def connection_of(request: web.Request) -> Connection:
    """The connection that a request came by."""
    connection = request.protocol
    assert isinstance(connection, Connection)
    return connection


def check_routes(routes: Sequence[Route]) -> None:
    """Refuse routes that do not say who may ask, or that are declared twice: nothing is served open by mistake."""
    seen = set()
    for route in routes:
        known = {"anyone", "read", "chat", "control"}
        if not isinstance(route, Route) or not route.access or not set(route.access) <= known:
            raise ConfigError(f"the route {getattr(route, 'path', route)} does not declare who may ask it")
        if (route.method, route.path) in seen:
            raise ConfigError(f"the route {route.method} {route.path} is declared twice")
        seen.add((route.method, route.path))


class Gate:
    """Lets requests in. ``routes``: what was declared, by the route that aiohttp finds."""

    def __init__(self, services: Services, names: Names, routes: Mapping[web.AbstractRoute, Route]) -> None:
        self.names, self.keys = names, KeyRing(services.server.keys)
        self.sessions, self.throttle = Sessions(), Throttle()
        self._services, self._routes = services, routes
        self._cookie = "__Host-vlm" if names.scheme == "https" else "vlm"

    @property
    def cookie(self) -> str:
        """The name of the session's cookie."""
        return self._cookie

    async def answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """A middleware: the response of ``handler``, or of whatever forbids to ask it."""
        connection = connection_of(request)
        connection.begin()
        begun_ns = self._services.clock.now_ns()
        status = 499
        try:
            response = await self._response(request, handler, connection)
            status = response.status
            return response
        finally:
            connection.end()
            self._count(request, status, begun_ns)

    async def prepare(self, request: web.Request, response: web.StreamResponse) -> None:
        """Put the headers of every response (a signal of aiohttp, before the head is written)."""
        connection_of(request).begun = response
        response.headers.update(SECURITY_HEADERS)

    async def _response(self, request: web.Request, handler: Handler, connection: Connection) -> web.StreamResponse:
        try:
            self._check(request, connection)
            return await handler(request)
        except HttpError as error:
            problem = error
        except VlmError as error:
            problem = from_vlm_error(error)
        except web.HTTPException as error:
            problem = _plain(error)
        except (asyncio.CancelledError, ConnectionError):
            raise
        except Exception:  # noqa: BLE001 - the top of a request: the fault is logged, the client learns that there is one
            _log.exception("a request failed: %s", self._name(request))
            problem = HttpError(500, "internal error", kind="server_error", code="internal_error", close=True)
        begun = connection.begun
        if begun is not None:  # an answer that was begun is broken off, not ended as if it were whole
            connection.abort()
            return begun
        if request.can_read_body and not request.content.is_eof():
            connection.hang_up_hearing()
            problem.close = True
        return error_response(problem)

    def _check(self, request: web.Request, connection: Connection) -> None:
        self._check_head(request)
        route = self._routes.get(request.match_info.route)
        who = connection.who = self._who(request, route)
        if route is None:
            return  # aiohttp's handler of unknown paths and methods, which answers 404 or 405
        if request.method in ("GET", "HEAD") and request.can_read_body:
            raise self._refusal("body", HttpError(400, f"{request.method} takes no body", close=True))
        if "anyone" in route.access or who.may & set(route.access):
            return
        if who is NOBODY:
            raise self._refusal("no_key", _unauthorized("an API key is missing or wrong"))
        needed = " or ".join(map(repr, route.access))
        message = f"the key {who.name!r} does not permit this; it takes {needed} (server.key.may)"
        raise self._refusal("permission", HttpError(403, message, kind="permission_error", code="not_permitted"))

    def _check_head(self, request: web.Request) -> None:
        size = sum(len(name) + len(value) for name, value in request.raw_headers)
        if len(request.raw_headers) > MAX_HEADERS or size > MAX_HEADER_BYTES:
            raise self._refusal("headers", HttpError(431, "too many headers", code="headers_too_large", close=True))
        hosts = request.headers.getall("Host", [])
        if len(hosts) != 1 or not request.raw_path.startswith("/"):
            raise self._refusal("host", HttpError(400, "a request has one Host header and a path", close=True))
        local = request.transport.get_extra_info("sockname") if request.transport is not None else None
        problem = host_problem(hosts[0], str(local[0]) if local else "", self.names)
        if problem is not None:
            raise self._refusal("host", HttpError(403, problem, kind="permission_error", code="host_not_allowed"))
        fetch = {name: request.headers[name] for name in _FETCH_HEADERS if name in request.headers}
        problem = browser_problem(request.method, request.path, hosts[0], fetch, self.names)
        if problem is not None:
            raise self._refusal("origin", HttpError(403, problem, kind="permission_error", code="origin_not_allowed"))

    def _who(self, request: web.Request, route: Route | None) -> Who:
        if not self.keys:
            return EVERYBODY
        scheme, _, key = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            try:
                return self.log_in(request.remote or "", key.strip())
            except HttpError:
                if route is not None and "anyone" in route.access:
                    return NOBODY
                raise
        token = request.cookies.get(self._cookie)
        found = None if token is None else self.sessions.find(token, self._services.clock.now_ns())
        now = None if found is None else self.keys.still(found)
        return NOBODY if found is None or now is None else Who(now.name, now.may, now.sha256, found.session)

    def log_in(self, address: str, key: str) -> Who:
        """Whose key it is. Raises HttpError 401, or 429 when this address guessed too often."""
        now_ns = self._services.clock.now_ns()
        wait_s = self.throttle.wait_s(address, key, now_ns)
        if wait_s > 0:
            raise self._refusal("guessing", _too_often(wait_s))
        who = self.keys.find(key)
        if who is None:
            self.throttle.wrong(address, now_ns)
            _log.warning("a wrong API key from %s", address)
            raise self._refusal("wrong_key", _unauthorized("the API key is wrong"))
        self.throttle.right(address, key)
        return who

    def _refusal(self, cause: str, error: HttpError) -> HttpError:
        self._services.metrics.http_refusals.add((cause,))
        return error

    def _name(self, request: web.Request) -> str:
        route = self._routes.get(request.match_info.route)
        return "other" if route is None else route.path

    def _count(self, request: web.Request, status: int, begun_ns: int) -> None:
        """Count a request and, on debug, log it: the route, never what the client wrote."""
        metrics, route = self._services.metrics, self._routes.get(request.match_info.route)
        spent_s = (self._services.clock.now_ns() - begun_ns) / NS_PER_S
        name = "other" if route is None else route.path
        method = request.method if request.method in ("GET", "HEAD", "POST") else "other"
        metrics.http_requests.add((name, method, str(status)))
        if route is not None and not route.stream:
            metrics.http_s.observe(spent_s, (name,))
        who = who_of(request)
        _log.debug("%s %s %s: %d in %.1f ms", who.name, method, name, status, spent_s * 1000)


def _unauthorized(message: str) -> HttpError:
    return HttpError(
        401, message, kind="authentication_error", code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"}
    )


def _too_often(wait_s: float) -> HttpError:
    return HttpError(
        429,
        "too many wrong keys from this address",
        kind="rate_limit_error",
        code="too_many_wrong_keys",
        headers={"Retry-After": str(int(wait_s) + 1)},
    )


def _plain(error: web.HTTPException) -> HttpError:
    """What aiohttp answers itself, in our shape."""
    if error.status == 404:
        return HttpError(404, "there is nothing at this path", code="not_found")
    if error.status == 405:
        return HttpError(
            405, "this path has other methods", code="method_not_allowed", headers={"Allow": error.headers["Allow"]}
        )
    return HttpError(error.status, error.reason, code="refused", close=True)
