"""Every route, with every key and without, on loopback and on the network: enumerated, so that none is forgotten."""

from __future__ import annotations

import asyncio
import logging

import aiohttp
import pytest
from aiohttp import web

from runtime.captiond.clock import NS_PER_S
from runtime.captiond.config import ServerSettings
from runtime.captiond.http.gate import SECURITY_HEADERS
from runtime.captiond.http.keys import MAX_FAILURES, MAX_SESSIONS, SESSION_S
from runtime.captiond.http.route import Route
from runtime.captiond.http.server import HttpServer
from runtime.errors import ConfigError, InputError
from tests.runtime.captiond.clocks import ManualClock
from tests.runtime.captiond.http.parts import ALL_KEYS, KEYS, Running, bearer, client, services, serving

WRONG = {"Authorization": "Bearer vlm-a-key-that-nobody-made-0123456789"}
CREDENTIALS: dict[str, tuple[dict[str, str], frozenset[str]]] = {
    "no key": ({}, frozenset()),
    "wrong key": (WRONG, frozenset()),
    "read": (bearer("read"), frozenset({"read"})),
    "chat": (bearer("chat"), frozenset({"chat"})),
    "control": (bearer("control"), frozenset({"control"})),
}
LISTEN = ["127.0.0.1", "0.0.0.0"]
# What the contract gives each route. A route that is not here fails the test: who may ask it has to be thought of.
ACCESS = {
    "/": {"anyone"},
    "/page/{file}": {"anyone"},
    "/health": {"anyone"},
    "/api/login": {"anyone"},
    "/api/logout": {"anyone"},
    "/metrics": {"read"},
    "/api/state": {"read"},
    "/events": {"read"},
    "/ws": {"read"},
    "/api/sources/{name}/picture.jpg": {"read"},
    "/api/sources/{name}/live.mjpg": {"read"},
    "/api/sources/{name}/history": {"read"},
    "/api/sources/{name}/history/{caption}.jpg": {"read"},
    "/api/sources/{name}/pause": {"control"},
    "/api/sources/{name}/resume": {"control"},
    "/api/sources/{name}/prompts": {"control"},
    "/api/sources/{name}/cadence": {"control"},
    "/v1/models": {"read", "chat"},
    "/v1/models/{model}": {"read", "chat"},
    "/v1/chat/completions": {"chat"},
}


def path_of(route: Route) -> str:
    return (
        route.path.replace("{name}", "door")
        .replace("{caption}", "1")
        .replace("{file}", "api.js")
        .replace("{model}", "demo-llava")
    )


async def status_of(session: aiohttp.ClientSession, running: Running, route: Route, headers: dict[str, str]) -> int:
    body = {"data": b"{}"} if route.method == "POST" else {}
    asked = {"Content-Type": "application/json"} if route.method == "POST" else {}
    async with session.request(route.method, running.url + path_of(route), headers=headers | asked, **body) as answer:
        assert set(SECURITY_HEADERS.items()) <= set(answer.headers.items()), route.path
        assert "Access-Control-Allow-Origin" not in answer.headers
        return answer.status


@pytest.mark.parametrize("listen", LISTEN)
@pytest.mark.parametrize("name", CREDENTIALS)
def test_a_route_answers_those_keys_alone_that_it_declares(name: str, listen: str) -> None:
    headers, may = CREDENTIALS[name]

    async def main() -> None:
        async with serving(keys=ALL_KEYS, listen=listen) as running, client() as session:
            routes = running.server.routes
            assert len({route.path for route in routes}) > 15
            for route in routes:
                assert set(route.access) == ACCESS[route.path], route.path
                running.server._gate.throttle = type(running.server._gate.throttle)()
                status = await status_of(session, running, route, headers)
                if "anyone" in route.access or may & set(route.access):
                    assert status not in (401, 403, 404, 405, 500), (route.path, status)
                else:
                    assert status == (403 if may else 401), (route.path, status)

    asyncio.run(main())


def test_without_keys_everything_is_permitted_on_loopback() -> None:
    async def main() -> None:
        async with serving() as running, client() as session:
            for route in running.server.routes:
                status = await status_of(session, running, route, {"Authorization": "Bearer whatever"})
                assert status not in (401, 403, 404, 405, 500), (route.path, status)

    asyncio.run(main())


@pytest.mark.parametrize("listen", ["0.0.0.0", "::", "192.0.2.1"])
def test_an_address_that_others_reach_is_not_served_without_a_key(listen: str) -> None:
    async def main() -> None:
        server = HttpServer(ServerSettings(port=0, listen=listen), services(), ManualClock())
        with pytest.raises(ConfigError, match=r"no API key"):
            await server.start()

    asyncio.run(main())


async def _hello(request: web.Request) -> web.StreamResponse:
    return web.Response(text="hello")


@pytest.mark.parametrize(
    "route",
    [
        Route("GET", "/more", _hello, ()),
        Route("GET", "/more", _hello, ("everyone",)),  # type: ignore[arg-type]
        Route("GET", "/health", _hello, ("anyone",)),
        web.get("/more", _hello),
    ],
)
def test_a_route_that_does_not_say_who_may_ask_keeps_the_server_from_starting(route: Route) -> None:
    async def main() -> None:
        with pytest.raises(ConfigError, match=r"declare"):
            async with serving(further=[route]):
                pass

    asyncio.run(main())


def test_head_answers_without_a_body_and_unknown_methods_are_told_which_there_are() -> None:
    async def main() -> None:
        async with serving(keys=ALL_KEYS) as running, client() as session:
            async with session.head(running.url + "/health") as answer:
                assert (answer.status, await answer.read()) == (200, b"")
            async with session.head(running.url + "/api/state") as answer:
                assert answer.status == 401
            async with session.put(running.url + "/health") as answer:
                assert answer.status == 405
                assert "GET" in answer.headers["Allow"]
            async with session.options(running.url + "/api/state", headers={"Origin": running.url}) as answer:
                assert answer.status == 405

    asyncio.run(main())


def test_errors_have_the_shape_of_the_openai_api_and_no_words_of_python() -> None:
    async def broken(request: web.Request) -> web.StreamResponse:
        raise RuntimeError("secret words")

    async def refused(request: web.Request) -> web.StreamResponse:
        raise InputError("n is 0; the least is 1", hint="n = 1")

    async def main() -> None:
        further = [Route("GET", "/broken", broken, ("read",)), Route("GET", "/refused", refused, ("read",))]
        async with serving(further=further) as running, client() as session:
            for path, status, word in (
                ("/nowhere", 404, "nothing"),
                ("/broken", 500, "internal error"),
                ("/refused", 400, "n is 0"),
            ):
                async with session.get(running.url + path) as answer:
                    error = (await answer.json())["error"]
                    assert answer.status == status
                    assert set(error) == {"message", "type", "param", "code"}
                    assert word in error["message"]
                    assert "secret" not in str(error)

    asyncio.run(main())


def test_an_answer_that_fails_half_way_is_broken_off_and_does_not_look_whole() -> None:
    async def half(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"half of it")
        raise RuntimeError("now")

    async def main() -> None:
        async with serving(further=[Route("GET", "/half", half, ("read",))]) as running, client() as session:
            with pytest.raises(aiohttp.ClientError):
                async with session.get(running.url + "/half") as answer:
                    await answer.read()

    asyncio.run(main())


def test_a_browser_logs_in_once_and_out_again() -> None:
    async def main() -> None:
        jar = aiohttp.CookieJar(unsafe=True)
        async with serving(keys=ALL_KEYS) as running, client(cookie_jar=jar) as session:
            async with session.post(running.url + "/api/login", json={"key": "wrong"}) as answer:
                assert answer.status == 401
                assert "Set-Cookie" not in answer.headers
            async with session.post(running.url + "/api/login", json={"key": KEYS["read"]}) as answer:
                assert await answer.json() == {"name": "read", "may": ["read"]}
                cookie = answer.headers["Set-Cookie"]
                assert "HttpOnly" in cookie
                assert "SameSite=Strict" in cookie
                assert KEYS["read"] not in cookie
            async with session.get(running.url + "/api/state") as answer:
                assert (await answer.json())["may"] == ["read"]
            async with session.post(running.url + "/api/sources/door/pause", json={}) as answer:
                assert answer.status == 403
            held = next(iter(jar)).value
            async with session.post(running.url + "/api/logout", json={}) as answer:
                assert answer.status == 200
            async with session.get(running.url + "/api/state", cookies={"vlm": held}) as answer:
                assert answer.status == 401

    asyncio.run(main())


def test_a_session_ends_with_its_time_and_with_its_key() -> None:
    clock = ManualClock()

    async def main() -> None:
        async with serving(keys=ALL_KEYS, clock=clock) as running:
            gate = running.server._gate
            assert gate is not None
            cookie = {"vlm": gate.sessions.open(gate.log_in("::1", KEYS["read"]), clock.now_ns())}
            async with client() as session:
                async with session.get(running.url + "/api/state", cookies=cookie) as answer:
                    assert answer.status == 200
            running.server.reload(ServerSettings(keys=ALL_KEYS[1:]))
            async with client() as session:
                async with session.get(running.url + "/api/state", cookies=cookie) as answer:
                    assert answer.status == 401
            running.server.reload(ServerSettings(keys=ALL_KEYS))
            then_ns = clock.now_ns() - SESSION_S * NS_PER_S
            late = {"vlm": gate.sessions.open(gate.log_in("::1", KEYS["read"]), then_ns)}
            async with client() as session:
                async with session.get(running.url + "/api/state", cookies=late) as answer:
                    assert answer.status == 401
                async with session.get(running.url + "/api/state", cookies=cookie) as answer:
                    assert answer.status == 200

    asyncio.run(main())


def test_guessing_is_slowed_down_and_does_not_lock_out_who_has_the_key() -> None:
    clock = ManualClock()

    async def main() -> None:
        async with serving(keys=ALL_KEYS, clock=clock) as running, client() as session:

            async def status(headers: dict[str, str]) -> int:
                async with session.get(running.url + "/api/state", headers=headers) as answer:
                    assert (answer.status == 429) == ("Retry-After" in answer.headers)
                    return answer.status

            assert await status(bearer("read")) == 200
            assert [await status(WRONG) for _ in range(MAX_FAILURES)] == [401] * MAX_FAILURES
            assert await status(WRONG) == 429
            assert await status(bearer("all")) == 429  # right, but not yet seen from here: it could be a guess
            assert await status(bearer("read")) == 200
            await clock.advance(7)
            assert await status(bearer("all")) == 200

    asyncio.run(main())


def test_sessions_are_bounded() -> None:
    async def main() -> None:
        async with serving(keys=ALL_KEYS) as running:
            gate = running.server._gate
            assert gate is not None
            who = gate.log_in("::1", KEYS["read"])
            first = gate.sessions.open(who, 0)
            for _ in range(MAX_SESSIONS):
                gate.sessions.open(who, 0)
            assert len(gate.sessions) == MAX_SESSIONS
            assert gate.sessions.find(first, 1) is None

    asyncio.run(main())


def test_the_log_names_keys_and_never_holds_them(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)

    async def main() -> None:
        async with serving(keys=ALL_KEYS) as running, client() as session:
            path = "/api/sources/door/pause?token=in-the-query"
            async with session.post(running.url + path, headers=bearer("control"), json={}) as answer:
                assert answer.status == 200
            async with session.get(running.url + "/api/state", headers=WRONG) as answer:
                assert answer.status == 401

    asyncio.run(main())
    assert "pause by control" in caplog.text
    assert "a wrong API key from 127.0.0.1" in caplog.text
    for secret in (*KEYS.values(), "vlm-a-key", "in-the-query"):
        assert secret not in caplog.text
