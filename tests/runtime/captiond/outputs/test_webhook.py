"""Webhooks against a real HTTP server: signatures, retries, answers that never come, and where they may not go."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp import web

from runtime.captiond.bus import Bus
from runtime.captiond.clock import NS_PER_S, Clock
from runtime.captiond.config.settings import WebhookSettings
from runtime.captiond.outputs.webhook import Webhook
from tests.runtime.captiond.clocks import ManualClock
from tests.runtime.captiond.outputs.running import eventually, notices, running
from tests.runtime.captiond.sample_events import delta, finished, rule

Answer = Callable[[int], web.StreamResponse | None]


class Target:
    """Somebody else's server. ``answer(n)``: what the n-th request gets, None: nothing, ever."""

    def __init__(self) -> None:
        self.url = ""
        self.requests: list[tuple[dict[str, str], bytes]] = []
        self.answer: Answer = lambda number: web.Response()
        self.free = asyncio.Event()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append((dict(request.headers), await request.read()))
        answer = self.answer(len(self.requests))
        if answer is None:
            await self.free.wait()
            return web.Response()
        return answer

    @property
    def rules(self) -> list[str]:
        return [json.loads(body)["rule"] for _, body in self.requests]


@asynccontextmanager
async def target() -> AsyncIterator[Target]:
    one = Target()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", one.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    one.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook?token=s3cret"
    try:
        yield one
    finally:
        one.free.set()
        await runner.cleanup()


def output(bus: Bus, url: str, clock: Clock | None = None, *, private: bool = True, **settings: Any) -> Webhook:
    given = WebhookSettings(name="hook", url=url, **settings)
    return Webhook(given, bus, clock or Clock(), allow_private=private)


def test_an_event_is_posted_once_with_an_id_and_a_signature_of_time_id_and_body(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("geheim\n", encoding="utf-8")

    async def main() -> None:
        bus, clock = Bus(), ManualClock()
        async with target() as server:
            one = output(bus, server.url, clock, events=("rule", "caption"), secret_file=str(secret))
            task = asyncio.ensure_future(one.run())
            for event in (delta(1, 0, "x"), finished(1, "a \x1b[1mball"), rule()):
                bus.publish(event)
            await eventually(lambda: one.delivered == 2)
            await one.close(5)
            await task
        (headers, body), (later, _) = server.requests
        said = json.loads(body)
        assert (said["type"], said["text"], said["id"]) == ("caption", "a [1mball", headers["X-VLM-Id"])
        assert headers["X-VLM-Event"] == "caption"
        assert int(headers["X-VLM-Timestamp"]) == clock.wall_ns() // NS_PER_S
        signed = f"{headers['X-VLM-Timestamp']}.{headers['X-VLM-Id']}.".encode() + body
        expected = hmac.new(b"geheim", signed, hashlib.sha256).hexdigest()
        assert headers["X-VLM-Signature"] == f"sha256={expected}"
        assert later["X-VLM-Id"] != headers["X-VLM-Id"]
        assert (one.dropped, one.errors) == (0, 0)

    asyncio.run(main())


def test_errors_of_the_server_are_tried_again_with_the_same_id_and_told_once() -> None:
    async def main() -> None:
        bus = Bus()
        told = notices(bus)
        async with target() as server:
            server.answer = lambda number: web.Response(status=(500, 429, 503, 200, 200)[number - 1])
            one = output(bus, server.url, ManualClock(), retries=3)
            task = asyncio.ensure_future(one.run())
            bus.publish(rule("first"))
            bus.publish(rule("second"))
            while one.delivered < 2:
                await one._clock.advance(1)  # type: ignore[attr-defined]
                await asyncio.sleep(0.001)
            await one.close(5)
            await task
        assert server.rules == ["first"] * 4 + ["second"]
        assert len({headers["X-VLM-Id"] for headers, _ in server.requests}) == 2
        assert [notice.level for notice in told] == ["warning", "info"]
        assert "HTTP 500" in told[0].message and "s3cret" not in told[0].message
        assert (one.errors, one.dropped) == (3, 0)

    asyncio.run(main())


def test_after_its_attempts_an_event_is_dropped_and_the_next_one_gets_its_own() -> None:
    async def main() -> None:
        bus = Bus()
        async with target() as server:
            server.answer = lambda number: web.Response(status=500 if number <= 2 else 204)
            one = output(bus, server.url, retries=1)
            async with running(one):
                bus.publish(rule("first"))
                bus.publish(rule("second"))
                await eventually(lambda: one.delivered == 1)
            assert (server.rules, one.dropped) == (["first", "first", "second"], 1)

    asyncio.run(main())


def test_requests_that_the_server_calls_wrong_are_not_repeated() -> None:
    async def main() -> None:
        bus = Bus()
        async with target() as server:
            server.answer = lambda number: web.Response(status=404 if number == 1 else 200)
            one = output(bus, server.url, retries=5)
            async with running(one):
                bus.publish(rule("first"))
                bus.publish(rule("second"))
                await eventually(lambda: one.delivered == 1)
            assert (server.rules, one.dropped) == (["first", "second"], 1)

    asyncio.run(main())


def test_redirects_are_not_followed() -> None:
    async def main() -> None:
        bus = Bus()
        async with target() as server:
            server.answer = lambda number: web.Response(status=302, headers={"Location": "/elsewhere"})
            one = output(bus, server.url)
            async with running(one):
                bus.publish(rule())
                await eventually(lambda: one.dropped == 1)
            assert len(server.requests) == 1

    asyncio.run(main())


def test_retry_after_is_heeded_up_to_half_a_minute() -> None:
    async def main() -> None:
        bus, clock = Bus(), ManualClock()
        async with target() as server:
            server.answer = lambda number: web.Response(
                status=429 if number == 1 else 200, headers={"Retry-After": "999999"}
            )
            one = output(bus, server.url, clock)
            task = asyncio.ensure_future(one.run())
            bus.publish(rule())
            await eventually(lambda: one.errors == 1)
            await clock.advance(29)
            assert len(server.requests) == 1
            await clock.advance(2)
            await eventually(lambda: one.delivered == 1)
            await one.close(5)
            await task

    asyncio.run(main())


def test_a_server_that_never_answers_holds_up_nobody_and_costs_its_own_events() -> None:
    async def main() -> None:
        bus = Bus()
        async with target() as server:
            server.answer = lambda number: None
            one = output(bus, server.url, timeout_s=0.1, retries=0)
            other = bus.subscribe("other", 5000, (type(rule()),))
            async with running(one, close_s=0.1):
                for number in range(1000):
                    bus.publish(rule(f"rule-{number}"))
                    if number % 50 == 0:
                        await asyncio.sleep(0)
                assert (other.waiting, other.dropped) == (1000, 0)
                assert one.subscription.waiting <= one.subscription.capacity
                await eventually(lambda: one.errors >= 2)
                assert one.state == "trouble"
            assert (one.delivered, one.dropped) == (0, 1000)

    asyncio.run(main())


def test_an_endless_answer_does_not_hold_the_connection() -> None:
    async def main() -> None:
        bus = Bus()
        async with target() as server:
            server.answer = lambda number: web.Response(body=b"x" * 3_000_000)
            one = output(bus, server.url)
            async with running(one):
                for _ in range(3):
                    bus.publish(rule())
                await eventually(lambda: one.delivered == 3)

    asyncio.run(main())


def test_private_addresses_are_refused_unless_they_are_allowed() -> None:
    async def main() -> None:
        bus = Bus()
        told = notices(bus)
        async with target() as server:
            one = output(bus, server.url, private=False, retries=0)
            async with running(one):
                bus.publish(rule())
                await eventually(lambda: one.dropped == 1)
            assert server.requests == []
            assert "not permitted" in told[0].message

    asyncio.run(main())


def test_without_its_secret_nothing_is_sent(tmp_path: Path) -> None:
    async def main() -> None:
        bus = Bus()
        async with target() as server:
            one = output(bus, server.url, secret_file=str(tmp_path / "nothing"))
            async with running(one):
                bus.publish(rule())
                await eventually(lambda: one.dropped == 1)
            assert server.requests == []

    asyncio.run(main())
