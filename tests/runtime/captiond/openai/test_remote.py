"""Remote images: off unless permitted; then only public web addresses, whatever the URL does to look like one."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest
from aiohttp import web

from runtime.captiond import addresses
from runtime.captiond.config import ServerSettings
from runtime.captiond.http.errors import HttpError
from runtime.captiond.openai import remote
from tests.runtime.captiond.openai.scripted import MODEL, api

JPEG = b"\xff\xd8 a picture"
ON = ServerSettings(remote_images=True)
OPEN = ServerSettings(remote_images=True, private_targets=True, max_image_bytes=4096)

HIDDEN = (
    "127.0.0.1", "127.0.0.2", "127.1", "127.0.1", "2130706433", "0x7f000001", "0x7f.0.0.1",
    "0177.0.0.1", "017700000001", "0x7f.1", "0", "0.0.0.0", "localhost",
    "LOCALHOST", "localhost.", "[::1]", "[::]", "[0:0:0:0:0:0:0:1]", "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]", "[::127.0.0.1]", "[64:ff9b::7f00:1]", "[64:ff9b::10.0.0.1]", "[2002:7f00:1::]",
    "[2002:a00:1::1]", "[2001:0:7f00:1::]", "[fe80::1]", "[fe80::1%25lo]", "[fc00::1]", "[fd00::1]", "[ff02::1]",
    "10.0.0.1", "10.255.255.255", "172.16.0.1", "172.31.255.254", "192.168.0.1", "192.168.1.254", "169.254.169.254",
    "169.254.169.254:80", "0xa9fea9fe", "2852039166", "0251.0376.0251.0376", "100.64.0.1", "100.127.255.254",
    "198.18.0.1", "192.0.0.1", "192.0.2.1", "198.51.100.7", "203.0.113.9", "224.0.0.1", "239.255.255.250",
    "240.0.0.1", "255.255.255.255", "127.0.0.1.", "①②⑦.⓪.⓪.①", "127。0。0。1",
)  # fmt: skip
STRANGE = (
    "http://user@8.8.8.8/", "http://user:word@8.8.8.8/", "http://8.8.8.8@127.0.0.1/", "http://8.8.8.8:22/",
    "http://8.8.8.8:8080/", "https://8.8.8.8:80/", "http://8.8.8.8:443/", "http:///etc/passwd", "https://",
    "http://", "http://:80/", "http://[::1/", "http://8.8.8.8:99999/", "http://8.8.8.8:-1/", "http://\\127.0.0.1/",
    "http://a b/", "http://%31%32%37.0.0.1/", "http://127.0.0.1%2f@8.8.8.8/", "https://exa\tmple:80/",
)  # fmt: skip


@asynccontextmanager
async def trap(
    handler: Callable[[web.Request], Any] | None = None, host: str = "127.0.0.1"
) -> AsyncIterator[tuple[int, list[str]]]:
    """A web server on loopback: its port, and what was asked of it."""
    asked: list[str] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        asked.append(request.path)
        if handler is None:
            return web.Response(body=JPEG, content_type="image/jpeg")
        response: web.StreamResponse = handler(request)
        return response

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, host, 0).start()
    try:
        yield int(runner.addresses[0][1]), asked
    finally:
        await runner.cleanup()


async def refusal(url: str, settings: ServerSettings) -> HttpError:
    with pytest.raises(HttpError) as caught:
        await remote.fetch(url, "messages[0]", settings)
    assert caught.value.param == "messages[0]"
    return caught.value


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Addresses that a connection was tried to; none is made."""
    tried: list[Any] = []

    async def connect(self: object, sock: socket.socket, address: Any) -> None:
        tried.append(address[:2])
        raise ConnectionRefusedError

    monkeypatch.setattr(asyncio.selector_events.BaseSelectorEventLoop, "sock_connect", connect)
    return tried


def hidden(url: str) -> None:
    error = asyncio.run(refusal(url, ON))
    assert (error.status, error.code) == (400, "image_not_fetched")
    assert error.message == "messages[0]: no image could be fetched from this URL", "it tells what is there"


@pytest.mark.parametrize("host", HIDDEN)
def test_no_connection_is_tried_to_hosts_that_are_not_public(host: str, connections: list[Any]) -> None:
    hidden(f"http://{host}/latest/meta-data")
    hidden(f"https://{host}/")
    assert connections == []


@pytest.mark.parametrize("url", STRANGE)
def test_no_connection_is_tried_for_urls_that_are_no_plain_web_addresses(url: str, connections: list[Any]) -> None:
    hidden(url)
    assert connections == []


def test_a_connection_is_tried_to_a_public_address(connections: list[Any]) -> None:
    hidden("http://8.8.8.8/a.jpg")
    assert connections == [("8.8.8.8", 80)]


def test_a_name_that_resolves_to_a_private_address_is_not_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    """DNS rebinding: what counts is the address that the socket is made for."""
    resolved: list[str] = []

    async def main() -> None:
        async with trap() as (port, asked):

            async def resolve(self: object, host: str, *_: object, **__: object) -> list[Any]:
                resolved.append(host)
                return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

            monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", resolve)
            monkeypatch.setitem(remote.PORTS, "http", port)
            await refusal(f"http://pictures.example.com:{port}/a.jpg", ON)
            assert asked == []

    asyncio.run(main())
    assert resolved == ["pictures.example.com"]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_each_redirect_is_checked_again(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first server counts as public, the second on loopback does not."""

    async def main() -> None:
        async with trap(host="127.0.0.2") as (inner_port, inner_asked):

            def away(request: web.Request) -> web.Response:
                return web.Response(status=status, headers={"Location": f"http://127.0.0.2:{inner_port}/secret"})

            async with trap(away) as (port, asked):
                monkeypatch.setattr(addresses, "is_public", lambda address: address == "127.0.0.1")
                monkeypatch.setattr(remote, "check_url", lambda url, any_port: None)
                await refusal(f"http://127.0.0.1:{port}/a.jpg", ON)
                assert asked == ["/a.jpg"]
                assert inner_asked == []

    asyncio.run(main())


@pytest.mark.parametrize(
    "location", ["file:///etc/passwd", "ftp://8.8.8.8/", "", "gopher://8.8.8.8/", "//user@8.8.8.8/"]
)
def test_redirects_to_other_schemes_end_it(location: str) -> None:
    async def main() -> None:
        def away(request: web.Request) -> web.Response:
            return web.Response(status=302, headers={"Location": location})

        async with trap(away) as (port, _):
            await refusal(f"http://127.0.0.1:{port}/a.jpg", OPEN)

    asyncio.run(main())


@pytest.mark.parametrize(("hops", "arrives"), [(0, True), (3, True), (4, False)])
def test_three_redirects_are_followed_and_no_more(hops: int, arrives: bool) -> None:
    async def main() -> None:
        def answer(request: web.Request) -> web.Response:
            left = int(request.path.strip("/"))
            if left:
                return web.Response(status=302, headers={"Location": f"/{left - 1}"})
            return web.Response(body=JPEG, content_type="image/jpeg")

        async with trap(answer) as (port, _):
            url = f"http://127.0.0.1:{port}/{hops}"
            if arrives:
                assert await remote.fetch(url, "p", OPEN) == JPEG
            else:
                await refusal(url, OPEN)

    asyncio.run(main())


def _streamed(request: web.Request) -> web.Response:
    return web.Response(body=(b"x" * 1000 for _ in range(9)), content_type="image/jpeg")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "response",
    [
        lambda _: web.Response(body=JPEG, content_type="text/html"),
        lambda _: web.Response(body=JPEG, content_type="image/svg+xml"),
        lambda _: web.Response(body=JPEG, content_type="image/jpeg", status=404),
        lambda _: web.Response(body=JPEG, content_type="image/jpeg", status=206),
        lambda _: web.Response(body=bytes(5000), content_type="image/jpeg"),
        lambda _: web.Response(body=JPEG, content_type="image/jpeg", headers={"Content-Encoding": "gzip"}),
    ],
    ids=["html", "svg", "404", "206", "too large", "compressed"],
)
def test_answers_that_are_no_picture_are_not_taken(response: Callable[[web.Request], web.Response]) -> None:
    async def main() -> None:
        async with trap(response) as (port, _):
            await refusal(f"http://127.0.0.1:{port}/a.jpg", OPEN)

    asyncio.run(main())


def test_a_body_without_a_length_is_cut_off_at_the_limit() -> None:
    async def main() -> None:
        async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nConnection: close\r\n\r\n")
            try:
                while True:
                    writer.write(bytes(1024))
                    await writer.drain()
            except ConnectionError:
                writer.close()

        server = await asyncio.start_server(endless, "127.0.0.1", 0)
        async with server:
            await refusal(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/a.jpg", OPEN)

    asyncio.run(main())


def test_a_server_that_says_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "TIMEOUT_S", 0.2)

    async def main() -> None:
        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()
            writer.close()

        server = await asyncio.start_server(silent, "127.0.0.1", 0)
        async with server:
            await refusal(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/a.jpg", OPEN)

    asyncio.run(main())


def test_nothing_is_fetched_unless_it_is_switched_on() -> None:
    async def main() -> None:
        async with trap() as (port, asked), api() as a, a.client() as client:
            content = [{"type": "image_url", "image_url": {"url": f"http://127.0.0.1:{port}/a.jpg"}}]
            messages: list[Any] = [{"role": "user", "content": content}]
            with pytest.raises(openai.PermissionDeniedError, match=r"server\.remote_images"):
                await client.chat.completions.create(model=MODEL, messages=messages)
            assert asked == []

    asyncio.run(main())


def test_a_permitted_image_reaches_the_decoder_and_no_cookie_or_key_goes_out() -> None:
    async def main() -> None:
        seen: list[dict[str, str]] = []

        def answer(request: web.Request) -> web.Response:
            seen.append(dict(request.headers))
            return web.Response(body=JPEG, content_type="image/jpeg", headers={"Set-Cookie": "a=b"})

        async with trap(answer) as (port, _), api(remote_images=True, private_targets=True) as a, a.client() as client:
            url = f"http://127.0.0.1:{port}/a.jpg"
            content = [
                {"type": "image_url", "image_url": {"url": url}},
                {"type": "image_url", "image_url": {"url": url}},
            ]
            messages: list[Any] = [{"role": "user", "content": content}]
            await client.chat.completions.create(model=MODEL, messages=messages)
            assert a.decoder.decoded == [JPEG, JPEG]
            assert not {"cookie", "authorization", "referer"} & {name.lower() for sent in seen for name in sent}
            assert "unused" not in json.dumps(seen), "the API key"

    asyncio.run(main())
