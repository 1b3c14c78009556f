"""Watchers that stop reading or vanish: they are cut off in time, cost bounded memory, and nobody else notices."""

from __future__ import annotations

import asyncio
import json
import socket
import tracemalloc

import pytest

from runtime.captiond.clock import NS_PER_S
from runtime.captiond.http.connection import STALL_S, SWEEP_S
from runtime.captiond.http.feed import HELD_EVENTS
from tests.runtime.captiond import sample_events as made
from tests.runtime.captiond.clocks import ManualClock
from tests.runtime.captiond.http.parts import Pictures, Running, client, services, serving, until

PATHS = {"sse": "/events", "websocket": "/ws", "mjpeg": "/api/sources/door/live.mjpg"}
LONG = "a long caption " * 60


async def stalled(running: Running, kind: str) -> socket.socket:
    """A client that has asked to watch and reads nothing of the answer."""
    plug = socket.socket()
    plug.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    plug.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(plug, ("127.0.0.1", running.port))
    upgrade = (
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    )
    request = f"GET {PATHS[kind]} HTTP/1.1\r\nHost: localhost:{running.port}\r\n"
    before = count(running)
    await loop.sock_sendall(plug, (request + (upgrade if kind == "websocket" else "") + "\r\n").encode())
    await until(lambda: count(running) == before + 1)
    return plug


def count(running: Running) -> int:
    return sum(running.server._watchers.counts().values())


def full(running: Running) -> int:
    return sum(watcher.full for watcher in running.server._watchers._watchers)


def is_reset(plug: socket.socket) -> bool:
    """Whether the peer has dropped the connection with all that it had not sent (state CLOSE, by TCP_INFO)."""
    return plug.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == 7


async def fill(running: Running, clock: ManualClock, clients: int) -> None:
    """Publish until so many clients have full buffers."""
    pictures = running.services.pictures
    assert isinstance(pictures, Pictures)
    for number in range(20_000):
        running.services.bus.publish(made.finished(number, LONG))
        pictures.seq += 1
        await clock.advance(0.05)
        await asyncio.sleep(0)
        if full(running) == clients:
            return
    raise AssertionError("the buffers never filled")


@pytest.mark.parametrize("kind", PATHS)
def test_a_client_that_does_not_read_is_cut_off_within_ten_seconds_of_a_full_buffer(kind: str) -> None:
    clock = ManualClock()

    async def main() -> None:
        parts = services(clock)
        parts.pictures.size = 50_000
        async with serving(parts=parts) as running:
            plug = await stalled(running, kind)
            await fill(running, clock, 1)
            then_ns = clock.now_ns()
            while count(running) and clock.now_ns() - then_ns < 30 * NS_PER_S:
                await clock.advance(SWEEP_S)
                await asyncio.sleep(0.001)
            assert STALL_S - 1 <= (clock.now_ns() - then_ns) / NS_PER_S <= 10
            assert running.services.metrics.connections_closed[("stalled",)] == 1
            await until(lambda: is_reset(plug))
            plug.close()

    asyncio.run(main())


def test_ten_stalled_clients_cost_bounded_memory_and_the_others_miss_nothing() -> None:
    clock = ManualClock()

    async def main() -> None:
        async with serving(clock=clock) as running, client() as session:
            plugs = [await stalled(running, kind) for kind in ("sse", "websocket") * 5]
            async with session.get(running.url + "/events?types=caption") as answer:
                seen: list[int] = []

                async def read() -> None:
                    async for line in answer.content:
                        if line.startswith(b"data: "):
                            seen.append(json.loads(line[6:]).get("caption", -1))

                reading = asyncio.create_task(read())
                await fill(running, clock, 10)
                sent = running.server._feed._next - 1
                await until(lambda: len(seen) == sent + 1)
                tracemalloc.start()
                held_before = tracemalloc.get_traced_memory()[0]
                for number in range(2000):
                    running.services.bus.publish(made.finished(100_000 + number, LONG))
                    await clock.advance(0.003)
                    await asyncio.sleep(0)
                await until(lambda: len(seen) > sent + 1900)
                grown = tracemalloc.get_traced_memory()[0] - held_before
                tracemalloc.stop()
                assert full(running) == 10
                assert grown < 4 << 20
                listeners = [item for item in running.server._feed._listeners if item.watcher.full]
                assert all(len(item.held) <= HELD_EVENTS for item in listeners)
                assert all(item.missed > 1000 for item in listeners)
                assert seen[1:] == sorted(seen[1:])
                reading.cancel()
            for plug in plugs:
                plug.close()

    asyncio.run(main())


def test_pictures_that_a_client_is_too_slow_for_are_left_out_and_do_not_pile_up() -> None:
    clock = ManualClock()

    async def main() -> None:
        parts = services(clock)
        parts.pictures.size = 50_000
        async with serving(parts=parts) as running:
            plug = await stalled(running, "mjpeg")
            await fill(running, clock, 1)
            (watcher,) = running.server._watchers._watchers
            for _ in range(40):  # within the time that a stalled client has
                parts.pictures.seq += 1
                await clock.advance(0.1)
                await asyncio.sleep(0)
            assert watcher.connection.transport.get_write_buffer_size() < 4 * 50_000
            plug.close()

    asyncio.run(main())


@pytest.mark.parametrize("kind", ["sse", "websocket"])
def test_a_client_that_reads_again_in_time_learns_how_much_it_missed(kind: str) -> None:
    clock = ManualClock()

    async def main() -> None:
        async with serving(clock=clock) as running:
            plug = await stalled(running, kind)
            await fill(running, clock, 1)
            for number in range(HELD_EVENTS + 10):
                running.services.bus.publish(made.finished(500_000 + number))
            await clock.advance(0.1)
            reader, writer = await asyncio.open_connection(sock=plug)
            data = bytearray()

            async def read() -> None:
                while piece := await reader.read(65536):
                    data.extend(piece)

            reading = asyncio.create_task(read())
            await until(lambda: full(running) == 0)
            running.services.bus.publish(made.finished(999_999))
            await clock.advance(0.1)
            await until(lambda: b'"caption":999999' in data)
            assert b'"type":"missed","events":' in data
            assert data.index(b'"missed"') < data.index(b'"caption":500000') < data.index(b'"caption":999999')
            assert count(running) == 1
            reading.cancel()
            writer.close()

    asyncio.run(main())


@pytest.mark.parametrize("kind", PATHS)
def test_a_client_that_vanishes_is_forgotten(kind: str) -> None:
    async def main() -> None:
        async with serving() as running:
            for _ in range(5):
                plug = await stalled(running, kind)
                plug.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")  # a reset
                plug.close()
                await until(lambda: count(running) == 0)
            assert not running.server._pictures._live
            assert not running.server._feed._listeners

    asyncio.run(main())


def test_the_server_stops_in_time_though_clients_do_not_read() -> None:
    clock = ManualClock()

    async def main() -> None:
        async with serving(clock=clock) as running:
            plugs = [await stalled(running, kind) for kind in ("sse", "websocket")]
            await fill(running, clock, 2)
            await asyncio.wait_for(running.server.stop(1.0), 30)
            assert not running.server._acceptor.connections
            for plug in plugs:
                plug.close()

    asyncio.run(main())
