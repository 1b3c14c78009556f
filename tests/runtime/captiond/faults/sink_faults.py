"""Every way in which a sink fails, done to real outputs in front of real peers; tests and a benchmark use them.

A kind: captions arrive at the sink; something happens to it; captions go on, at another subscriber all of them; it is
well again, and a caption that was published after that arrives.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from aiohttp import web

from runtime.captiond.bus import Bus
from runtime.captiond.clock import Clock
from runtime.captiond.config.settings import (
    JsonlSettings,
    MqttSettings,
    SourceSettings,
    TerminalSettings,
    WebhookSettings,
)
from runtime.captiond.events import CaptionFinished
from runtime.captiond.outputs.jsonl import Jsonl
from runtime.captiond.outputs.mqtt import Mqtt
from runtime.captiond.outputs.output import Output
from runtime.captiond.outputs.terminal import Terminal
from runtime.captiond.outputs.webhook import Webhook
from tests.peers.mosquitto import Mosquitto
from tests.peers.proxy import Fault, FaultProxy
from tests.runtime.captiond.sample_events import finished

CAPTIONS_PER_S = 200
_LIMIT_S = 60.0
_DOOR = SourceSettings(name="door", uri="file.mp4")

Act = Callable[[], object]


@dataclass(frozen=True)
class Outcome:
    """Of one injection. ``noticed_s``: until the output said so, None where it may not; ``back_s``: from the instant
    the sink was well until a caption arrived that was published after it. ``missed``: captions that the other
    subscriber did not get; ``longest_publish_ms``: what the publisher was held up at most."""

    noticed_s: float | None
    back_s: float
    published: int
    missed: int
    dropped: int
    longest_publish_ms: float


class World:
    """A publisher of captions, an output, and another subscriber that must get every one."""

    def __init__(self, output: Output, bus: Bus) -> None:
        self.output = output
        self.number = 0
        self.longest_ns = 0
        self.got = 0
        self._bus = bus
        self._other = bus.subscribe("other", 64, (CaptionFinished,))

    async def publish(self) -> None:
        while True:
            begun = time.perf_counter_ns()
            self._bus.publish(finished(self.number + 1, "x" * 400))
            self.longest_ns = max(self.longest_ns, time.perf_counter_ns() - begun)
            self.number += 1
            assert self.output.subscription.waiting <= self.output.subscription.capacity
            await asyncio.sleep(1 / CAPTIONS_PER_S)

    async def count(self) -> None:
        async for _ in self._other:
            self.got += 1

    async def until(self, true: Callable[[], object], what: str) -> None:
        end = time.monotonic() + _LIMIT_S
        while not true():
            assert time.monotonic() < end, f"{self.output.name}: {what} did not come"
            await asyncio.sleep(0.005)


@asynccontextmanager
async def world(make: Callable[[Bus], Output]) -> AsyncIterator[World]:
    bus = Bus()
    made = World(make(bus), bus)
    tasks = [asyncio.ensure_future(work) for work in (made.publish(), made.count(), made.output.run())]
    try:
        yield made
    finally:
        await made.output.close(0.5)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        for task in tasks[:2]:
            assert task.cancelled(), task.exception()


async def through(
    made: World, newest: Callable[[], int], fail: Act, heal: Act, rng: random.Random, *, told: bool = True
) -> Outcome:
    """Break the sink, mend it. ``newest``: number of the newest caption that has arrived. ``told``: the output must
    say that it is in trouble."""
    await made.until(lambda: newest() >= 5, "the first captions")
    begun = time.monotonic()
    await _do(fail)
    noticed_s = None
    if told:
        await made.until(lambda: made.output.state == "trouble", "a word of trouble")
        noticed_s = time.monotonic() - begun
    await asyncio.sleep(rng.uniform(1.5, 2.5))  # longer than its queue
    await _do(heal)
    begun, mark = time.monotonic(), made.number
    await made.until(lambda: newest() > mark, "a caption after the fault")
    back_s = time.monotonic() - begun
    await asyncio.sleep(0)
    longest_ms = made.longest_ns / 1e6
    return Outcome(noticed_s, back_s, made.number, made.number - made.got, made.output.dropped, longest_ms)


async def _do(act: Act) -> None:
    """Blocking peers must not hold up the publisher: they are not under test."""
    await asyncio.get_running_loop().run_in_executor(None, act)


# ---- broker


@asynccontextmanager
async def broker(folder: Path) -> AsyncIterator[tuple[Mosquitto, FaultProxy, Callable[[], int], World]]:
    """A broker, a proxy before it, and a subscriber that connects without the proxy."""
    with Mosquitto(folder) as made, FaultProxy(made.port) as proxy:
        heard: list[int] = [0]

        def newest() -> int:
            return heard[0]

        def make(bus: Bus) -> Output:
            settings = MqttSettings(host="localhost", port=proxy.port, keepalive_s=5)
            return Mqtt(settings, "box", bus, Clock(), (_DOOR,))

        async with world(make) as one, listening(made, heard):
            yield made, proxy, newest, one


@asynccontextmanager
async def listening(made: Mosquitto, heard: list[int]) -> AsyncIterator[None]:
    """mosquitto_sub comes back by itself after a restart of the broker."""
    with made.listener("vlm/box/door/caption/json") as listener:

        async def read() -> None:
            while True:
                said = listener.heard[-1:]
                heard[0] = json.loads(said[0].payload)["caption"] if said else 0
                await asyncio.sleep(0.005)

        task = asyncio.ensure_future(read())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait({task})


async def broker_down(folder: Path, rng: random.Random) -> Outcome:
    async with broker(folder) as (made, _, newest, one):
        end = rng.choice((made.stop, made.kill))
        return await through(one, newest, end, made.start, rng)


async def broker_unreachable(folder: Path, rng: random.Random) -> Outcome:
    async with broker(folder) as (_, proxy, newest, one):

        def fail() -> None:
            proxy.refuse()
            proxy.reset_all()

        return await through(one, newest, fail, proxy.accept, rng)


async def broker_half_open(folder: Path, rng: random.Random) -> Outcome:
    async with broker(folder) as (_, proxy, newest, one):

        def set_fault(fault: Fault) -> None:
            proxy.fault = fault

        return await through(one, newest, lambda: set_fault(Fault(silent=True)), lambda: set_fault(Fault()), rng)


async def broker_slow(folder: Path, rng: random.Random) -> Outcome:
    """Confirmations come at 10 to 30 bytes a second: of some five messages."""
    async with broker(folder) as (_, proxy, newest, one):

        def fail() -> None:
            proxy.fault = Fault(bytes_per_s=rng.uniform(10, 30))

        def heal() -> None:
            proxy.fault = Fault()

        return await through(one, newest, fail, heal, rng, told=False)


async def broker_stopped(folder: Path, rng: random.Random) -> Outcome:
    """SIGSTOP for a time that keepalive outlasts: nothing is said, nothing is lost but what does not fit."""
    async with broker(folder) as (made, _, newest, one):
        pause = made.paused()
        return await through(one, newest, pause.__enter__, lambda: pause.__exit__(None, None, None), rng, told=False)


# ---- disk


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    place = folder / "disk"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)], capture_output=True)
    if done.returncode != 0:
        pytest.skip("needs the right to mount a tmpfs (root)")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


async def disk_full(folder: Path, rng: random.Random) -> Outcome:
    with small_disk(folder) as disk:
        path, filler = disk / "lines", disk / "filler"

        def make(bus: Bus) -> Output:
            return Jsonl(JsonlSettings(path=str(path), max_bytes=60_000, keep=1, sync_s=0.2), bus, Clock())

        def newest() -> int:
            lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
            whole = [line for line in lines if line.endswith(b"\n")]
            return json.loads(whole[-1])["caption"] if whole else 0

        def fail() -> None:
            with filler.open("wb", buffering=0) as file:
                try:
                    while True:
                        file.write(b"x" * rng.randint(1, 4096))
                except OSError:
                    return

        async with world(make) as one:
            outcome = await through(one, newest, fail, filler.unlink, rng)
        for file in disk.iterdir():
            assert all(json.loads(line) for line in file.read_bytes().splitlines())
        return outcome


# ---- webhook


class Target:
    """Somebody else's server on a port that stays its own."""

    def __init__(self) -> None:
        self.newest = 0
        self.status = 200
        self.hangs = False
        self.port = 0
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        app = web.Application()
        app.router.add_post("/", self._handle)
        self._runner = web.AppRunner(app, shutdown_timeout=0.01)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    async def _handle(self, request: web.Request) -> web.Response:
        number = (await request.json())["caption"]
        if self.hangs:
            await asyncio.sleep(3600)
        if self.status == 200:
            self.newest = number
        return web.Response(status=self.status)


async def _webhook(rng: random.Random, fail: Callable[[Target], None], heal: Callable[[Target], None]) -> Outcome:
    target = Target()
    await target.start()

    def make(bus: Bus) -> Output:
        url = f"http://127.0.0.1:{target.port}/"
        settings = WebhookSettings(name="hook", url=url, events=("caption",), timeout_s=0.3, retries=2)
        return Webhook(settings, bus, Clock(), allow_private=True, rng=random.Random(rng.random()))

    try:
        async with world(make) as one:
            return await through(one, lambda: target.newest, lambda: fail(target), lambda: heal(target), rng)
    finally:
        await target.stop()


async def webhook_500(folder: Path, rng: random.Random) -> Outcome:
    def answer(status: int) -> Callable[[Target], None]:
        return lambda target: setattr(target, "status", status)

    return await _webhook(rng, answer(rng.choice((500, 502, 503, 429))), answer(200))


async def webhook_hang(folder: Path, rng: random.Random) -> Outcome:
    def hang(hangs: bool) -> Callable[[Target], None]:
        return lambda target: setattr(target, "hangs", hangs)

    return await _webhook(rng, hang(True), hang(False))


# ---- standard output


async def stdout_stuck(folder: Path, rng: random.Random) -> Outcome:
    """A pipe that is read no more, and later is."""
    ours, theirs = os.pipe()
    reading, arrived = [True], [0]

    async def read() -> None:
        rest = b""
        os.set_blocking(ours, False)
        while True:
            await asyncio.sleep(0.002)
            try:
                rest += os.read(ours, 1 << 16) if reading[0] else b""
            except BlockingIOError:
                continue
            *lines, rest = rest.split(b"\n")
            arrived[0] = json.loads(lines[-1])["caption"] if lines else arrived[0]

    def make(bus: Bus) -> Output:
        return Terminal(TerminalSettings(style="json"), bus, Clock(), (), fd=theirs)

    def fail() -> None:
        reading[0] = False

    task = asyncio.ensure_future(read())
    try:
        async with world(make) as one:
            return await through(one, lambda: arrived[0], fail, lambda: reading.__setitem__(0, True), rng, told=False)
    finally:
        task.cancel()
        await asyncio.wait({task})
        os.close(ours)
        os.close(theirs)


KINDS: Mapping[str, Callable[[Path, random.Random], Awaitable[Outcome]]] = {
    "broker_down": broker_down,
    "broker_unreachable": broker_unreachable,
    "broker_half_open": broker_half_open,
    "broker_slow": broker_slow,
    "broker_stopped": broker_stopped,
    "disk_full": disk_full,
    "webhook_500": webhook_500,
    "webhook_hang": webhook_hang,
    "stdout_stuck": stdout_stuck,
}
