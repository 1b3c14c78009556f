"""Slow, huge, crooked and many requests: each ends in time, costs little memory, and does not disturb the others."""

from __future__ import annotations

import asyncio
import gzip
import tracemalloc
from contextlib import suppress

import pytest

from runtime.captiond.http.body import FREE_CHUNKS
from runtime.captiond.http.connection import MAX_HEAD_BYTES
from tests.runtime.captiond.clocks import ManualClock
from tests.runtime.captiond.http.parts import Running, client, raw, serving, until

POST = "POST /api/sources/door/prompts HTTP/1.1\r\nHost: localhost:{port}\r\nContent-Type: application/json\r\n"
MIB = 1 << 20


def head(running: Running, text: str) -> bytes:
    return text.format(port=running.port).encode()


async def healthy(running: Running) -> bool:
    async with client() as session, session.get(running.url + "/health") as answer:
        return answer.status == 200


def status(answer: bytes) -> int:
    return int(answer.split(b" ")[1])


async def step(clock: ManualClock, seconds: float, running: Running) -> None:
    """Let time pass in steps in which sockets are served."""
    for _ in range(round(seconds)):
        await clock.advance(1.0)
        await asyncio.sleep(0.001)


def connections(running: Running) -> int:
    acceptor = running.server._acceptor
    assert acceptor is not None
    return len(acceptor.connections)


def test_a_head_that_trickles_is_cut_off_as_a_whole_however_often_a_byte_comes() -> None:
    clock = ManualClock()

    async def main() -> None:
        async with serving(clock=clock, header_timeout_s=10.0) as running:
            reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
            for byte in head(running, "GET /he"):
                writer.write(bytes([byte]))
                await step(clock, 1, running)
            await step(clock, 4, running)
            answer = await asyncio.wait_for(reader.read(), 30)
            assert status(answer) == 408
            writer.close()
            await until(lambda: connections(running) == 0)
            assert running.services.metrics.connections_closed[("head",)] == 1

    asyncio.run(main())


def test_a_body_that_trickles_is_cut_off_as_a_whole() -> None:
    clock = ManualClock()

    async def main() -> None:
        async with serving(clock=clock, header_timeout_s=10.0, body_timeout_s=5.0) as running:
            reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
            writer.write(head(running, POST + "Content-Length: 1000\r\n\r\n"))
            for _ in range(8):
                writer.write(b" ")
                await asyncio.sleep(0.005)
                await step(clock, 1, running)
            with suppress(ConnectionError):  # a byte of ours came after the end
                assert status(await asyncio.wait_for(reader.read(), 30)) == 408
            writer.close()
            assert running.services.metrics.connections_closed[("body",)] == 1

    asyncio.run(main())


def test_an_idle_connection_is_closed_and_a_second_head_is_timed_anew() -> None:
    clock = ManualClock()

    async def main() -> None:
        async with serving(clock=clock, header_timeout_s=5.0, idle_timeout_s=20.0) as running:
            request = head(running, "GET /health HTTP/1.1\r\nHost: localhost:{port}\r\n\r\n")
            idle, slow = [await asyncio.open_connection("127.0.0.1", running.port) for _ in range(2)]
            for reader, writer in (idle, slow):
                writer.write(request)
                assert b"200" in await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)
            await step(clock, 10, running)
            slow[1].write(request[:20])
            await asyncio.sleep(0.01)
            assert connections(running) == 2
            await step(clock, 7, running)
            assert b"408" in await asyncio.wait_for(slow[0].read(), 30)
            await step(clock, 6, running)
            assert b"HTTP" not in await asyncio.wait_for(idle[0].read(), 30)
            assert running.services.metrics.connections_closed[("idle",)] == 1
            for _, writer in (idle, slow):
                writer.close()

    asyncio.run(main())


def test_two_hundred_slow_connections_leave_room_for_a_request() -> None:
    async def main() -> None:
        async with serving(max_connections=50) as running:
            slow = [await asyncio.open_connection("127.0.0.1", running.port) for _ in range(200)]
            for _, writer in slow:
                writer.write(b"GET / HT")
            assert await healthy(running)
            assert connections(running) <= 50
            for _, writer in slow:
                writer.close()

    asyncio.run(main())


def test_busy_connections_are_not_thrown_out_for_a_new_one() -> None:
    async def main() -> None:
        async with serving(max_connections=2) as running, client() as session:
            watched = [await session.get(running.url + "/events") for _ in range(2)]
            answer = await raw(running.port, head(running, "GET /health HTTP/1.1\r\nHost: localhost:{port}\r\n\r\n"))
            assert answer == b"" or status(answer) == 503
            assert [answer.connection is not None for answer in watched] == [True, True]
            watched[0].close()
            await until(lambda: connections(running) < 2)
            assert await healthy(running)
            watched[1].close()

    asyncio.run(main())


@pytest.mark.parametrize("declared", [True, False])
def test_a_body_of_100_mb_is_refused_and_never_kept(declared: bool) -> None:
    async def main() -> None:
        async with serving(max_body_bytes=MIB) as running:
            reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
            size = "Content-Length: 104857600" if declared else "Transfer-Encoding: chunked"
            tracemalloc.start()
            writer.write(head(running, POST + size + "\r\n\r\n"))
            piece = b" " * MIB if declared else b"%x\r\n" % MIB + b" " * MIB + b"\r\n"
            with suppress(ConnectionError):  # it hangs up
                for _ in range(100):
                    writer.write(piece)
                    await writer.drain()
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            try:
                answer = await asyncio.wait_for(reader.read(), 30)
            except ConnectionError:
                answer = b""
            assert answer == b"" or status(answer) == 413
            assert peak < 12 * MIB
            writer.close()
            assert await healthy(running)

    asyncio.run(main())


def test_a_body_that_is_announced_too_large_is_refused_before_it_comes() -> None:
    async def main() -> None:
        async with serving() as running:
            answer = await raw(running.port, head(running, POST + "Content-Length: 104857600\r\n\r\n"))
            assert b"body_too_large" in answer
            assert running.services.metrics.connections_closed[("body",)] == 0

    asyncio.run(main())


def test_a_body_too_large_is_told_to_a_client_that_listens() -> None:
    async def main() -> None:
        async with serving() as running, client() as session:
            url = running.url + "/api/sources/door/prompts"
            body = b'{"prompts": "' + b"x" * 300_000 + b'"}'
            async with session.post(url, data=body, headers={"Content-Type": "application/json"}) as answer:
                assert answer.status == 413
                assert "262144" in (await answer.json())["error"]["message"]

    asyncio.run(main())


def test_chunks_of_six_bytes_are_refused_after_a_few_thousand() -> None:
    async def main() -> None:
        async with serving() as running:
            flood = b"6\r\nabcdef\r\n" * 500_000
            answer = await raw(running.port, head(running, POST + "Transfer-Encoding: chunked\r\n\r\n") + flood)
            assert b"tiny_chunks" in answer
            assert await healthy(running)

    asyncio.run(main())


def test_a_body_in_a_few_small_chunks_is_taken() -> None:
    async def main() -> None:
        async with serving() as running:
            body = b'{"captions_per_s": 3.5}'
            chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
            assert len(body) < FREE_CHUNKS
            asked = POST.replace("prompts", "cadence") + "Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
            request = head(running, asked)
            assert status(await raw(running.port, request + chunks)) == 200
            assert running.captioner.captions_per_s == 3.5

    asyncio.run(main())


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "gzip, gzip"])
def test_a_compressed_body_is_refused_unopened(encoding: str) -> None:
    async def main() -> None:
        async with serving() as running, client() as session:
            headers = {"Content-Encoding": encoding, "Content-Type": "application/json"}
            bomb = gzip.compress(bytes(50 * MIB))
            url = running.url + "/api/sources/door/prompts"
            async with session.post(url, data=bomb, headers=headers, skip_auto_headers=["Accept-Encoding"]) as answer:
                assert answer.status == 415

    asyncio.run(main())


@pytest.mark.parametrize(
    "flood",
    [
        b"".join(b"X-%d: y\r\n" % n for n in range(20_000)),
        b"X: " + b"y" * 200_000 + b"\r\n",
        b"Cookie: " + b"a=b;" * 1900 + b"\r\n" + b"Cookie: " + b"a=b;" * 1900 + b"\r\n" * 2 + b"",
        b"".join(b"X-%d: %s\r\n" % (n, b"y" * 5000) for n in range(20)),
        b"y" * (2 * MAX_HEAD_BYTES),
    ],
    ids=["names", "value", "cookies", "bytes", "no line"],
)
def test_a_flood_of_headers_is_refused(flood: bytes) -> None:
    async def main() -> None:
        async with serving() as running:
            request = head(running, "GET /health HTTP/1.1\r\nHost: localhost:{port}\r\nConnection: close\r\n")
            answer = await raw(running.port, request + flood + b"\r\n")
            assert answer == b"" or status(answer) in ((200,) if b"Cookie" in flood else (400, 431))
            assert await healthy(running)

    asyncio.run(main())


def test_a_request_line_without_end_is_refused() -> None:
    async def main() -> None:
        async with serving() as running:
            answer = await raw(running.port, b"GET /" + b"a" * 300_000)
            assert answer == b"" or status(answer) in (400, 414, 431)

    asyncio.run(main())


TRAVERSALS = [
    "/page/../http/keys.py", "/page/..%2fhttp%2fkeys.py", "/page/%2e%2e/http/keys.py", "/page/%2e%2e%2fkeys.py",
    "/page/..\\http\\keys.py", "/page/..%5c..%5cetc%5cpasswd", "/page/....//....//etc/passwd", "/page//etc/passwd",
    "/page/%2fetc%2fpasswd", "/page/%252e%252e%252fetc%252fpasswd", "/page/..%252f..%252fetc/passwd",
    "/page/..%c0%af..%c0%afetc/passwd", "/page/%c0%ae%c0%ae/etc/passwd", "/page/..%00/etc/passwd",
    "/page/index.html%00.js", "/page/api.js%00", "/page/api.js/", "/page/api.js/..", "/page/./../server.py",
    "/page/~root/.ssh/id_rsa", "/page/file:%2f%2f%2fetc%2fpasswd", "/page/C:%5cWindows%5cwin.ini",
    "/page/__init__.py", "/page/.htaccess", "/page/.git%2fconfig", "/page/index.html~", "/page/INDEX.HTML",
    "/../../../../etc/passwd", "/..%2f..%2f..%2fetc%2fpasswd", "//etc/passwd", "/%2e%2e/%2e%2e/etc/passwd",
    "/./../etc/passwd", "/static/../page/../../pyproject.toml", "/page/%uff0e%uff0e/etc/passwd",
    "/page/．．/etc/passwd", "/api/sources/../state", "/api/sources/..%2fdoor/history",
    "/api/sources/door%2f../history",
    "/api/sources/%2e%2e/picture.jpg", "/api/sources/door/history/..%2f..%2fetc%2fpasswd.jpg",
    "/api/sources/door/history/1.jpg%00.png", "/api/sources/door/history/-1.jpg", "/api/sources/door/history/1e3.jpg",
]  # fmt: skip


@pytest.mark.parametrize("path", TRAVERSALS)
def test_no_path_leads_to_a_file_that_is_not_of_the_page(path: str) -> None:
    async def main() -> None:
        async with serving() as running:
            request = f"GET {path} HTTP/1.1\r\nHost: localhost:{running.port}\r\nConnection: close\r\n\r\n"
            answer = await raw(running.port, request.encode())
            assert status(answer) in (400, 404), answer[:100]
            assert b"root:" not in answer
            assert b"import" not in answer

    asyncio.run(main())


SMUGGLING = {
    "both lengths": "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two lengths": "Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}}",
    "two equal lengths": "Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
    "a list of lengths": "Content-Length: 2, 2\r\n\r\n{}",
    "a signed length": "Content-Length: +2\r\n\r\n{}",
    "a negative length": "Content-Length: -1\r\n\r\n{}",
    "a hexadecimal length": "Content-Length: 0x2\r\n\r\n{}",
    "a spaced name": "Content-Length : 2\r\n\r\n{}",
    "a folded line": "X: a\r\n b\r\nContent-Length: 2\r\n\r\n{}",
    "chunked twice": "Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "unknown coding": "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "identity after chunked": "Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "negative chunk": "Transfer-Encoding: chunked\r\n\r\n-1\r\n\r\n",
    "huge chunk": "Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n\r\n",
    "chunk with a sign": "Transfer-Encoding: chunked\r\n\r\n+2\r\n{}\r\n0\r\n\r\n",
    "a null in a value": "X: a\0b\r\nContent-Length: 2\r\n\r\n{}",
    "a bare line feed": "X: a\nContent-Length: 2\r\n\r\n{}",
}


@pytest.mark.parametrize("rest", SMUGGLING.values(), ids=SMUGGLING)
def test_a_crooked_head_is_refused_and_nothing_behind_it_is_answered(rest: str) -> None:
    async def main() -> None:
        async with serving() as running:
            hidden = f"POST /api/sources/door/pause HTTP/1.1\r\nHost: localhost:{running.port}\r\n\r\n"
            answer = await raw(running.port, head(running, POST) + rest.encode() + hidden.encode())
            assert answer == b"" or status(answer) in (400, 408, 413, 501), answer[:200]
            assert not running.captioner.paused

    asyncio.run(main())


def test_a_get_takes_no_body() -> None:
    async def main() -> None:
        async with serving() as running:
            request = head(running, "GET /health HTTP/1.1\r\nHost: localhost:{port}\r\nContent-Length: 5\r\n\r\nhello")
            assert status(await raw(running.port, request)) == 400

    asyncio.run(main())
