"""A server on a free port with tiny stand-ins for the daemon's parts."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import aiohttp

from runtime.captiond.asks import Ask, SharedImage
from runtime.captiond.bus import Bus
from runtime.captiond.clock import Clock
from runtime.captiond.config import KeySettings, PromptSettings, RuleSettings, ServerSettings, SourceSettings
from runtime.captiond.events import EngineChanged
from runtime.captiond.http.route import Route
from runtime.captiond.http.server import HttpServer
from runtime.captiond.http.services import About, AskedView, Services, SourceView
from runtime.captiond.metrics import Metrics
from tests.runtime.captiond import sample_events

KEYS = {name: f"vlm-key-of-{name}-0123456789abcdef" for name in ("read", "chat", "control", "all")}


def key(name: str, *may: str) -> KeySettings:
    return KeySettings(name=name, sha256=hashlib.sha256(KEYS[name].encode()).hexdigest(), may=may)


ALL_KEYS = (
    key("read", "read"),
    key("chat", "chat"),
    key("control", "control"),
    key("all", "read", "chat", "control"),
)


@dataclass
class Stats:
    restarts: int = 2
    deaths: Mapping[str, int] = field(default_factory=lambda: {"killed": 2})
    waiting: int = 1
    running: int = 3
    captions_waiting: int = 0
    captions_running: int = 1
    refused: int = 4
    retries: int = 1
    asks: int = 10
    tokens: int = 99
    frames: int = 300
    reconnects: int = 5
    stalls: int = 6
    fps: float = 29.97
    missed: int = 7
    unchanged: int = 8
    delivered: int = 11
    errors: int = 12


@dataclass
class Facts:
    max_seq_len: int = 512
    memory_bytes: Mapping[str, int] = field(default_factory=lambda: {"weights": 1000, "kv_cache": 500})


class Engine:
    def __init__(self) -> None:
        self.state = EngineChanged("ready", "", "", 2, 1.5)
        self.model: str | None = "demo-llava"
        self.facts: Facts | None = Facts()
        self.stats = Stats()

    def ask(self, ask: Ask) -> AskedView:
        raise AssertionError("these tests do not ask the engine")


@dataclass
class Header:
    seq: int = 41
    t_capture_ns: int = 0
    width: int = 640
    height: int = 480


class Runner:
    def __init__(self) -> None:
        self.stats = Stats()
        self.header: Header | None = Header()

    def newest(self) -> Header | None:
        return self.header


@dataclass
class Entry:
    finished: object
    jpeg: bytes | None


class Captioner:
    def __init__(self, settings: SourceSettings) -> None:
        self.paused, self.captions_per_s = False, 2.0
        self.prompts: Sequence[PromptSettings] = settings.prompts
        self.prompt_id = settings.prompts[0].id
        self.stats = Stats()
        self.history = [Entry(sample_events.finished(1), b"\xff\xd8one"), Entry(sample_events.finished(2), None)]

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False

    def set_prompts(self, prompts: Sequence[PromptSettings]) -> None:
        self.prompts = prompts

    def set_cadence(self, captions_per_s: float) -> None:
        self.captions_per_s = captions_per_s

    async def jpeg_of(self, caption: int) -> bytes | None:
        return next((entry.jpeg for entry in self.history if entry.finished.caption == caption), None)


@dataclass
class Jpeg:
    data: bytes
    seq: int


class Pictures:
    def __init__(self) -> None:
        self.seq, self.size = 41, 1000
        self.asked: list[tuple[str, int, str | None]] = []

    async def jpeg(
        self,
        source: str,
        *,
        slot: tuple[int, int] | None = None,
        after_seq: int = -1,
        max_side_px: int = 960,
        quality: int = 80,
        overlay: str | None = None,
    ) -> Jpeg | None:
        self.asked.append((source, max_side_px, overlay))
        return Jpeg(b"\xff\xd8" + bytes(self.size), self.seq) if self.seq > after_seq else None

    async def decode(self, data: bytes) -> SharedImage:
        raise AssertionError("these tests decode no pictures")


PROMPTS = (
    PromptSettings(id="what", text="What is there?"),
    PromptSettings(id="dog", text="Is there a dog?", kind="yes_no"),
)
SOURCE = SourceSettings(
    name="door",
    uri="rtsp://cam.lan/1",
    prompts=PROMPTS,
    rules=(RuleSettings(name="dog", prompt="dog", value="yes"),),
)


def services(clock: Clock | None = None) -> Services:
    clock = clock or Clock()
    view = SourceView(SOURCE, Runner(), Captioner(SOURCE))
    return Services(
        bus=Bus(),
        engine=Engine(),
        sources={"door": view},
        pictures=Pictures(),
        metrics=Metrics(),
        server=ServerSettings(),
        about=About("1.2.3", "box", clock.now_ns()),
        clock=clock,
        watchdog_margin_s=lambda: 12.5,
        outputs={"jsonl": Stats()},
    )


@dataclass
class Running:
    """A server that answers. ``url`` has no slash at its end."""

    server: HttpServer
    services: Services
    url: str

    @property
    def port(self) -> int:
        return self.server.port

    @property
    def captioner(self) -> Captioner:
        captioner = self.services.sources["door"].captioner
        assert isinstance(captioner, Captioner)
        return captioner


@asynccontextmanager
async def serving(
    *,
    parts: Services | None = None,
    clock: Clock | None = None,
    further: Sequence[Route] = (),
    **settings: object,
) -> AsyncIterator[Running]:
    parts = parts or services(clock)
    config = replace(ServerSettings(port=0), **settings)
    server = HttpServer(config, parts, parts.clock, further)
    await server.start()
    host = "127.0.0.1" if config.listen == "0.0.0.0" else config.listen
    scheme = "http" if config.certificate_file is None else "https"
    try:
        yield Running(server, parts, f"{scheme}://{host}:{server.port}")
    finally:
        await server.stop(2.0)


@asynccontextmanager
async def client(**options: object) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30), **options) as session:
        yield session
    await asyncio.sleep(0)


def bearer(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {KEYS[name]}"}


async def until(holds: Callable[[], bool], rounds: int = 3000) -> None:
    """Wait until something holds; 30 s at most."""
    for _ in range(rounds):
        if holds():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never held")


async def raw(port: int, data: bytes, *, host: str = "127.0.0.1", read_bytes: int = 1 << 20) -> bytes:
    """What the server sends to these bytes until it closes, or 30 s."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(data)
        return await asyncio.wait_for(reader.read(-1), 30)
    except ConnectionError:
        return b""
    finally:
        writer.close()


def names(items: Collection[str]) -> str:
    return ", ".join(sorted(items))
