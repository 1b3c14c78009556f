"""Events over server-sent events and WebSockets, read by clients that know nothing of this server."""

from __future__ import annotations

import asyncio
import json
import threading
import urllib.request
from collections.abc import AsyncIterator

import aiohttp
import pytest
import websockets

from runtime.captiond.config import ServerSettings
from runtime.captiond.http.feed import HEARTBEAT_S, REPLAY_EVENTS
from tests.runtime.captiond import sample_events as made
from tests.runtime.captiond.clocks import ManualClock
from tests.runtime.captiond.http.parts import ALL_KEYS, KEYS, Running, bearer, client, serving, until


async def messages(answer: aiohttp.ClientResponse) -> AsyncIterator[dict[str, str]]:
    """Events by the rules of the HTML standard, 9.2.6, comments apart."""
    fields: dict[str, str] = {}
    async for line in answer.content:
        text = line.decode().rstrip("\n")
        if not text:
            if "data" in fields:
                yield fields
            fields = {}
        elif not text.startswith(":"):
            name, _, value = text.partition(": ")
            fields[name] = value


def watchers(running: Running) -> int:
    return sum(running.server._watchers.counts().values())


def test_an_event_stream_gives_events_with_type_number_and_json() -> None:
    async def main() -> None:
        async with serving() as running, client() as session:
            async with session.get(running.url + "/events") as answer:
                assert answer.headers["Content-Type"] == "text/event-stream"
                read = messages(answer)
                hello = await anext(read)
                assert (hello["event"], hello["retry"]) == ("hello", "2000")
                running.services.bus.publish(made.started(7))
                running.services.bus.publish(made.delta(7, 0, "ein Bär\u2028\n<b>"))
                running.services.bus.publish(made.finished(7, "ein Bär"))
                first, second, third = [await anext(read) for _ in range(3)]
            assert [item["event"] for item in (first, second, third)] == ["caption_started", "caption_delta", "caption"]
            assert json.loads(second["data"])["text"] == "ein Bär\u2028\n<b>"
            assert json.loads(third["data"])["frame"]["source"] == "door"
            boots, numbers = zip(*(item["id"].split("-") for item in (hello, first, second, third)), strict=True)
            assert len(set(boots)) == 1
            assert numbers == ("0", "1", "2", "3")
            await until(lambda: watchers(running) == 0)

    asyncio.run(main())


def test_a_blocking_reader_of_the_standard_library_reads_it_too() -> None:
    async def main() -> None:
        async with serving() as running:
            lines: list[bytes] = []

            def read() -> None:
                with urllib.request.urlopen(running.url + "/events?types=rule", timeout=30) as answer:
                    for line in answer:
                        lines.append(line)
                        if b'"dog"' in line:
                            return

            thread = threading.Thread(target=read)
            thread.start()
            await until(lambda: len(lines) > 3)
            running.services.bus.publish(made.finished(1))
            running.services.bus.publish(made.rule())
            await until(lambda: not thread.is_alive())
            thread.join()
            assert b"event: rule\n" in lines
            assert b"event: caption\n" not in lines

    asyncio.run(main())


@pytest.mark.parametrize(
    ("query", "kinds"),
    [
        ("?types=caption,rule", ["caption", "caption", "rule"]),
        ("?types=caption&types=rule", ["caption", "caption", "rule"]),
        ("?source=door", ["caption_delta", "caption", "rule", "engine"]),
        ("?source=door&types=engine", ["engine"]),
    ],
)
def test_a_stream_gives_the_types_and_sources_that_were_asked_for(query: str, kinds: list[str]) -> None:
    async def main() -> None:
        async with serving() as running, client() as session:
            async with session.get(running.url + "/events" + query) as answer:
                read = messages(answer)
                await anext(read)
                for event in (
                    made.delta(1, 0, "a"), made.finished(1), made.finished(2, source="yard"), made.rule(),
                    made.engine_changed(),
                ):  # fmt: skip
                    running.services.bus.publish(event)
                assert [(await anext(read))["event"] for _ in kinds] == kinds

    asyncio.run(main())


@pytest.mark.parametrize(
    ("query", "status"), [("?types=captoin", 400), ("?source=nowhere", 404), ("?types=" + "a," * 99, 400)]
)
def test_a_wrong_choice_is_refused_before_the_stream_begins(query: str, status: int) -> None:
    async def main() -> None:
        async with serving() as running, client() as session:
            for path in ("/events", "/ws"):
                async with session.get(running.url + path + query) as answer:
                    assert answer.status == (426 if path == "/ws" and answer.status == 426 else status)

    asyncio.run(main())


def test_a_client_that_comes_back_gets_whole_events_that_it_missed() -> None:
    async def main() -> None:
        async with serving() as running, client() as session:

            async def greeting(last: str | None) -> tuple[dict[str, object], list[str]]:
                headers = {} if last is None else {"Last-Event-ID": last}
                async with session.get(running.url + "/events", headers=headers) as answer:
                    read = messages(answer)
                    hello = json.loads((await anext(read))["data"])
                    return hello, [(await anext(read))["event"] for _ in range(hello["replayed"])]

            async with session.get(running.url + "/events") as answer:
                read = messages(answer)
                await anext(read)
                running.services.bus.publish(made.finished(1))
                last = (await anext(read))["id"]
                running.services.bus.publish(made.delta(2, 0, "a"))
                running.services.bus.publish(made.finished(2))
                running.services.bus.publish(made.rule())
                newest = [await anext(read) for _ in range(3)][-1]["id"]
            assert await greeting(last) == ({"type": "hello", "replayed": 2, "missed": False}, ["caption", "rule"])
            assert (await greeting(newest))[0] == {"type": "hello", "replayed": 0, "missed": False}
            assert (await greeting(None))[0]["missed"] is False
            for strange in (
                "otherboot-1",
                "nonsense",
                last + "9" * 30,
                last.replace("-", ""),
                last.split("-")[0] + "-9",
            ):
                assert (await greeting(strange))[0] == {"type": "hello", "replayed": 0, "missed": True}
            for number in range(REPLAY_EVENTS + 1):
                running.services.bus.publish(made.finished(3 + number))
            await until(lambda: running.server._feed._next > REPLAY_EVENTS)
            hello, kinds = await greeting(last)
            assert hello["missed"] is True
            assert len(kinds) == REPLAY_EVENTS

    asyncio.run(main())


def test_a_quiet_stream_is_kept_alive_by_comments() -> None:
    clock = ManualClock()

    async def main() -> None:
        async with serving(clock=clock) as running, client() as session:
            async with session.get(running.url + "/events") as answer:
                await anext(messages(answer))
                await clock.advance(HEARTBEAT_S + 0.1)
                assert await asyncio.wait_for(answer.content.readline(), 30) == b": \n"

    asyncio.run(main())


def test_an_old_client_without_chunks_gets_the_stream_as_it_is() -> None:
    async def main() -> None:
        async with serving() as running:
            reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
            writer.write(f"GET /events HTTP/1.0\r\nHost: localhost:{running.port}\r\n\r\n".encode())
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)
            assert b"chunked" not in head
            await until(lambda: watchers(running) == 1)
            await asyncio.wait_for(reader.readuntil(b"\n\n"), 30)
            running.services.bus.publish(made.rule())
            assert (await asyncio.wait_for(reader.readline(), 30)) == b"event: rule\n"
            writer.close()

    asyncio.run(main())


def test_a_websocket_gives_the_same_events_and_takes_control_messages() -> None:
    async def main() -> None:
        async with serving() as running:
            async with websockets.connect(running.url.replace("http", "ws") + "/ws?types=caption") as socket:
                assert json.loads(await socket.recv())["type"] == "hello"
                for length in (10, 200, 70_000):
                    running.services.bus.publish(made.finished(length, "ä" * length))
                    event = json.loads(await socket.recv())
                    assert (event["type"], event["text"]) == ("caption", "ä" * length)
                await socket.send(json.dumps({"do": "pause", "source": "door", "id": 5}))
                assert json.loads(await socket.recv()) == {"type": "reply", "id": 5, "ok": True, "error": None}
                assert running.captioner.paused
                await socket.send(json.dumps({"do": "cadence", "source": "door", "captions_per_s": 0.5}))
                await socket.recv()
                assert running.captioner.captions_per_s == 0.5
                await (await socket.ping())

    asyncio.run(main())


@pytest.mark.parametrize(
    "message",
    ["", "{", "[]", "null", "5", '{"do":1}', '{"do":"pause"}', '{"do":"pause","source":5}',
     '{"do":"fly","source":"door"}',
     '{"do":"pause","source":"nowhere"}', '{"do":"pause","source":"door","x":1}', '{"do":"pause","do":"resume"}',
     '{"do":"cadence","source":"door","captions_per_s":NaN}', '{"do":"prompts","source":"door","prompts":[]}',
     "[" * 30_000, '{"do":"pause","source":"door","id":' + "9" * 5000 + "}"],
    ids=range(16),
)  # fmt: skip
def test_a_message_that_cannot_be_done_is_answered_with_an_error_and_the_socket_stays(message: str) -> None:
    async def main() -> None:
        async with serving() as running:
            async with websockets.connect(running.url.replace("http", "ws") + "/ws?types=rule") as socket:
                await socket.recv()
                await socket.send(message)
                reply = json.loads(await socket.recv())
                assert (reply["type"], reply["ok"]) == ("reply", False)
                assert set(reply["error"]) == {"message", "type", "param", "code"}
                assert not running.captioner.paused
                running.services.bus.publish(made.rule())
                assert json.loads(await socket.recv())["type"] == "rule"

    asyncio.run(main())


def test_who_may_only_read_watches_and_controls_nothing() -> None:
    async def main() -> None:
        async with serving(keys=ALL_KEYS) as running:
            url = running.url.replace("http", "ws") + "/ws?types=rule"
            async with websockets.connect(url, additional_headers=bearer("read")) as socket:
                await socket.recv()
                await socket.send(json.dumps({"do": "pause", "source": "door"}))
                assert json.loads(await socket.recv())["error"]["code"] == "not_permitted"
                assert not running.captioner.paused

    asyncio.run(main())


@pytest.mark.parametrize("sent", ["x" * 70_000, b"bytes"])
def test_a_websocket_takes_no_bytes_and_no_long_messages(sent: str | bytes) -> None:
    async def main() -> None:
        async with serving() as running:
            async with websockets.connect(running.url.replace("http", "ws") + "/ws") as socket:
                await socket.recv()
                await socket.send(sent)
                with pytest.raises(websockets.ConnectionClosed):
                    await socket.recv()
                assert socket.close_code in (1003, 1009)
            await until(lambda: watchers(running) == 0)

    asyncio.run(main())


def test_there_are_at_most_so_many_watchers() -> None:
    async def main() -> None:
        async with serving(max_watchers=3) as running, client() as session:
            answers = [await session.get(running.url + path) for path in ("/events", "/api/sources/door/live.mjpg")]
            async with websockets.connect(running.url.replace("http", "ws") + "/ws"):
                assert running.server._watchers.counts() == {"sse": 1, "websocket": 1, "mjpeg": 1}
                async with session.get(running.url + "/events") as answer:
                    assert answer.status == 503
                    assert answer.headers["Retry-After"] == "5"
            await until(lambda: watchers(running) == 2)
            async with session.get(running.url + "/events") as answer:
                assert answer.status == 200
            for answer in answers:
                answer.close()

    asyncio.run(main())


def test_streams_end_when_their_key_goes_or_its_owner_logs_out() -> None:
    async def main() -> None:
        jar = aiohttp.CookieJar(unsafe=True)
        async with serving(keys=ALL_KEYS) as running, client(cookie_jar=jar) as session, client() as other:
            async with session.post(running.url + "/api/login", json={"key": KEYS["all"]}) as answer:
                assert answer.status == 200
            by_cookie = await session.get(running.url + "/events")
            by_key = await other.get(running.url + "/events", headers=bearer("read"))
            async with session.post(running.url + "/api/logout", json={}) as answer:
                assert answer.status == 200
            assert b"hello" in await asyncio.wait_for(by_cookie.read(), 30)
            assert watchers(running) == 1
            running.server.reload(ServerSettings(keys=ALL_KEYS[1:]))
            assert b"hello" in await asyncio.wait_for(by_key.read(), 30)
            await until(lambda: watchers(running) == 0)

    asyncio.run(main())


def test_a_number_that_json_has_not_breaks_no_stream() -> None:
    async def main() -> None:
        async with serving() as running, client() as session:
            async with session.get(running.url + "/events") as answer:
                read = messages(answer)
                await anext(read)
                running.services.bus.publish(made.finished(1, fields={"n": float("nan"), "m": [float("inf"), 1.5]}))
                event = json.loads((await anext(read))["data"], parse_constant=pytest.fail)
                assert event["fields"] == {"n": None, "m": [None, 1.5]}

    asyncio.run(main())
