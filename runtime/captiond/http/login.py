"""POST /api/login and /api/logout: a browser gives its key once and gets a cookie; a key never stands in a URL."""

from __future__ import annotations

from aiohttp import web

from runtime.captiond.clock import Clock
from runtime.captiond.http.body import read_json
from runtime.captiond.http.gate import Gate, who_of
from runtime.captiond.http.json_answer import json_answer
from runtime.captiond.http.keys import MAX_KEY_CHARS, SESSION_S
from runtime.captiond.http.route import Route
from runtime.captiond.http.watchers import Watchers
from runtime.errors import InputError

MAX_LOGIN_BYTES = 4096


class Login:
    """Both routes."""

    def __init__(self, gate: Gate, watchers: Watchers, clock: Clock) -> None:
        self._gate, self._watchers, self._clock = gate, watchers, clock

    def routes(self) -> list[Route]:
        """Their declarations."""
        return [
            Route("POST", "/api/login", self._login, ("anyone",)),
            Route("POST", "/api/logout", self._logout, ("anyone",)),
        ]

    async def _login(self, request: web.Request) -> web.Response:
        body = await read_json(request, MAX_LOGIN_BYTES)
        key = body.get("key") if isinstance(body, dict) and set(body) == {"key"} else None
        if not isinstance(key, str) or not 0 < len(key) <= MAX_KEY_CHARS:
            raise InputError('the body is {"key": "…"}')
        if not self._gate.keys:
            return json_answer({"name": who_of(request).name, "may": sorted(who_of(request).may)})
        who = self._gate.log_in(request.remote or "", key)
        token = self._gate.sessions.open(who, self._clock.now_ns())
        response = json_answer({"name": who.name, "may": sorted(who.may)})
        response.set_cookie(
            self._gate.cookie,
            token,
            max_age=SESSION_S,
            path="/",
            secure=self._gate.names.scheme == "https",
            httponly=True,
            samesite="Strict",
        )
        return response

    async def _logout(self, request: web.Request) -> web.Response:
        """End the session, and what watches by it."""
        who = who_of(request)
        if who.session is not None:
            self._gate.sessions.close(who.session)
            self._watchers.dismiss(lambda watcher: watcher.who.session == who.session)
        response = json_answer({})
        response.del_cookie(
            self._gate.cookie, path="/", secure=self._gate.names.scheme == "https", httponly=True, samesite="Strict"
        )
        return response
