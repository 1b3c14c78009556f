"""DNS rebinding, cross-site requests and cross-site WebSockets: what a browser would send, case by case."""

from __future__ import annotations

import asyncio

import pytest
import websockets

from runtime.captiond.http.hosts import Names, browser_problem, host_problem
from tests.runtime.captiond.http.parts import ALL_KEYS, bearer, client, raw, serving

PORT = 8090
LOOPBACK = Names("http", PORT, True, frozenset({"cam.lan", "proxy.lan:8443"}), frozenset({"https://panel.lan:8443"}))
NETWORK = Names("http", PORT, False, frozenset(), frozenset())
TLS = Names("https", 443, True, frozenset(), frozenset())

# The Host header, at which address the connection arrived, whether it is answered.
HOSTS = [
    ("localhost:8090", "127.0.0.1", LOOPBACK, True),
    ("127.0.0.1:8090", "127.0.0.1", LOOPBACK, True),
    ("[::1]:8090", "::1", LOOPBACK, True),
    ("LOCALHOST:8090", "127.0.0.1", LOOPBACK, True),
    ("cam.lan", "127.0.0.1", LOOPBACK, True),
    ("cam.lan:1234", "127.0.0.1", LOOPBACK, True),
    ("proxy.lan:8443", "127.0.0.1", LOOPBACK, True),
    ("192.168.1.7:8090", "192.168.1.7", NETWORK, True),
    ("192.168.1.7:8090", "::ffff:192.168.1.7", NETWORK, True),
    ("[fe80::1]:8090", "fe80::1%eth0", NETWORK, True),
    ("localhost", "127.0.0.1", TLS, True),
    ("evil.example:8090", "127.0.0.1", LOOPBACK, False),
    ("localhost.evil.example:8090", "127.0.0.1", LOOPBACK, False),
    ("127.0.0.1.evil.example:8090", "127.0.0.1", LOOPBACK, False),
    ("evil.example", "127.0.0.1", LOOPBACK, False),
    ("localhost", "127.0.0.1", LOOPBACK, False),
    ("localhost:8091", "127.0.0.1", LOOPBACK, False),
    ("proxy.lan:8444", "127.0.0.1", LOOPBACK, False),
    ("127.0.0.1:8090", "192.168.1.7", NETWORK, False),
    ("localhost:8090", "192.168.1.7", NETWORK, False),
    ("192.168.1.8:8090", "192.168.1.7", NETWORK, False),
    ("0x7f000001:8090", "127.0.0.1", LOOPBACK, False),
    ("2130706433:8090", "127.0.0.1", LOOPBACK, False),
    ("127.1:8090", "127.0.0.1", LOOPBACK, False),
    ("localhost.:8090", "127.0.0.1", LOOPBACK, False),
    ("user@localhost:8090", "127.0.0.1", LOOPBACK, False),
    ("localhost:8090/x", "127.0.0.1", LOOPBACK, False),
    ("localhost:8090, evil", "127.0.0.1", LOOPBACK, False),
    ("localhost:", "127.0.0.1", LOOPBACK, False),
    ("", "127.0.0.1", LOOPBACK, False),
    ("[::1", "::1", LOOPBACK, False),
    ("ⓛocalhost:8090", "127.0.0.1", LOOPBACK, False),
]


@pytest.mark.parametrize(("host", "local", "names", "answered"), HOSTS)
def test_a_host_is_answered_that_a_stranger_cannot_have(host: str, local: str, names: Names, answered: bool) -> None:
    assert (host_problem(host, local, names) is None) == answered


SAME = "http://localhost:8090"
PAGE = {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
# Method, path, what the browser sends along, whether it is answered. The Host is localhost:8090.
REQUESTS = [
    ("GET", "/events", {}, True),  # no browser
    ("GET", "/events", {"Sec-Fetch-Site": "same-origin"}, True),
    ("GET", "/", {"Sec-Fetch-Site": "none", **PAGE}, True),  # typed, or a bookmark
    ("GET", "/", {"Sec-Fetch-Site": "cross-site", **PAGE}, True),  # a link
    ("POST", "/api/login", {"Origin": SAME, "Sec-Fetch-Site": "same-origin"}, True),
    ("POST", "/api/login", {"Origin": "https://panel.lan:8443", "Sec-Fetch-Site": "cross-site"}, True),
    ("GET", "/ws", {"Origin": SAME}, True),
    ("GET", "/ws", {"Origin": "HTTP://LOCALHOST:8090"}, True),
    ("GET", "/ws", {"Origin": "http://evil.example"}, False),
    ("GET", "/ws", {"Origin": "http://evil.example:8090"}, False),
    ("GET", "/ws", {"Origin": "https://localhost:8090"}, False),
    ("GET", "/ws", {"Origin": "http://localhost:3000"}, False),  # another program of this machine
    ("GET", "/ws", {"Origin": "http://localhost"}, False),
    ("GET", "/ws", {"Origin": "http://127.0.0.1:8090"}, False),
    ("GET", "/ws", {"Origin": "null"}, False),  # a sandboxed frame, a file
    ("GET", "/ws", {"Origin": ""}, False),
    ("GET", "/ws", {"Origin": "http://localhost:8090.evil.example"}, False),
    ("GET", "/ws", {"Origin": "http://localhost:8090 http://evil.example"}, False),
    ("POST", "/api/sources/door/pause", {"Origin": "http://evil.example", "Sec-Fetch-Site": "cross-site"}, False),
    ("POST", "/api/sources/door/pause", {"Sec-Fetch-Site": "cross-site"}, False),
    ("POST", "/api/sources/door/pause", {"Sec-Fetch-Site": "same-site"}, False),
    ("POST", "/", {"Sec-Fetch-Site": "cross-site", **PAGE}, False),
    ("GET", "/events", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors"}, False),
    ("GET", "/api/sources/door/picture.jpg", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Dest": "image"}, False),
    ("GET", "/api/state", {"Sec-Fetch-Site": "cross-site", **PAGE}, False),
    ("GET", "/", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"}, False),
    ("GET", "/", {"Sec-Fetch-Site": "whatever"}, False),
]


@pytest.mark.parametrize(("method", "path", "headers", "answered"), REQUESTS)
def test_a_page_of_another_site_gets_no_answer(method: str, path: str, headers: dict[str, str], answered: bool) -> None:
    assert (browser_problem(method, path, "localhost:8090", headers, LOOPBACK) is None) == answered


def test_every_route_checks_host_and_origin_before_anything_else() -> None:
    async def main() -> None:
        async with serving(keys=ALL_KEYS) as running, client() as session:
            for route in running.server.routes:
                url = running.url + route.path.replace("{name}", "door").replace("{caption}", "1")
                for headers, code in (
                    ({"Host": f"evil.example:{running.port}"}, "host_not_allowed"),
                    ({"Origin": "http://evil.example"}, "origin_not_allowed"),
                ):
                    headers |= bearer("all")
                    async with session.request(route.method, url, headers=headers) as answer:
                        assert answer.status == 403, route.path
                        assert (await answer.json())["error"]["code"] == code

    asyncio.run(main())


@pytest.mark.parametrize(
    ("origin", "welcome"), [(None, True), ("same", True), ("http://evil.example", False), ("null", False)]
)
def test_a_websocket_of_another_site_is_refused_in_its_handshake(origin: str | None, welcome: bool) -> None:
    async def main() -> None:
        async with serving() as running:
            own = running.url if origin == "same" else origin
            url = running.url.replace("http", "ws") + "/ws"
            if welcome:
                async with websockets.connect(url, origin=own) as socket:
                    assert '"hello"' in await socket.recv()
            else:
                with pytest.raises(websockets.InvalidStatus) as refusal:
                    await websockets.connect(url, origin=own)
                assert refusal.value.response.status_code == 403

    asyncio.run(main())


@pytest.mark.parametrize(
    "head",
    [
        "GET /health HTTP/1.1\r\n\r\n",
        "GET /health HTTP/1.0\r\n\r\n",
        "GET /health HTTP/1.1\r\nHost: localhost:{port}\r\nHost: evil\r\n\r\n",
        "GET /health HTTP/1.1\r\nHost: evil\r\nHost: localhost:{port}\r\n\r\n",
        "GET http://evil.example/health HTTP/1.1\r\nHost: localhost:{port}\r\n\r\n",
        "GET http://localhost:{port}/health HTTP/1.1\r\nHost: evil.example\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\nHost: localhost:{port}\r\n\r\n",
        "CONNECT localhost:{port} HTTP/1.1\r\nHost: localhost:{port}\r\n\r\n",
    ],
)
def test_a_request_with_no_host_or_two_is_refused(head: str) -> None:
    async def main() -> None:
        async with serving() as running:
            answer = await raw(running.port, head.format(port=running.port).encode())
            assert answer.split(b"\r\n")[0].split(b" ")[1] in (b"400", b"403", b"405")
            assert b"sources" not in answer

    asyncio.run(main())
