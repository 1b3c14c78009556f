"""What the routes need of the daemon, as protocols: tests pass tiny stand-ins, the daemon its own parts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from runtime.captiond.asks import Ask, AskDelta, AskResult, SharedImage
from runtime.captiond.clock import Clock
from runtime.captiond.config import PromptSettings, ServerSettings, SourceSettings
from runtime.captiond.events import CaptionFinished, EngineChanged, Event, FrameFacts

if TYPE_CHECKING:
    from runtime.captiond.metrics import Metrics


class SubscriptionView(Protocol):
    """One reader of the bus; ``dropped`` counts events that it was too slow for."""

    dropped: int

    def __aiter__(self) -> AsyncIterator[Event]: ...
    def take(self) -> Event | None: ...
    def close(self) -> None: ...


class SubscriberView(Protocol):
    """Subscribers of one name: what waits for them, what they have lost."""

    @property
    def waiting(self) -> int: ...
    @property
    def dropped(self) -> int: ...


class BusView(Protocol):
    """`runtime.captiond.bus.Bus`."""

    def publish(self, event: Event) -> None: ...
    def subscribe(self, name: str, capacity: int = 256, types: Collection[type] | None = None) -> SubscriptionView: ...
    def tap(self, callback: Callable[[Event], None]) -> object: ...
    def stats(self) -> Mapping[str, SubscriberView]: ...


class AskedView(Protocol):
    """An answer on its way."""

    def __aiter__(self) -> AsyncIterator[AskDelta]: ...
    async def started(self) -> FrameFacts | None: ...
    async def result(self) -> AskResult: ...
    def cancel(self) -> None: ...


class EngineStatsView(Protocol):
    """Counters of the engine; ``deaths`` by cause. ``waiting``, ``running``, ``refused`` and ``retries`` are chats."""

    @property
    def restarts(self) -> int: ...
    @property
    def deaths(self) -> Mapping[str, int]: ...
    @property
    def waiting(self) -> int: ...
    @property
    def running(self) -> int: ...
    @property
    def captions_waiting(self) -> int: ...
    @property
    def captions_running(self) -> int: ...
    @property
    def refused(self) -> int: ...
    @property
    def retries(self) -> int: ...
    @property
    def asks(self) -> int: ...
    @property
    def tokens(self) -> int: ...


class EngineFactsView(Protocol):
    """What the loaded model is; ``memory_bytes`` by purpose, as `runtime.Session.memory_report` gives it."""

    @property
    def max_seq_len(self) -> int: ...
    @property
    def memory_bytes(self) -> Mapping[str, int]: ...


class EngineView(Protocol):
    """`runtime.captiond.engine.client.EngineClient`. ``facts`` and ``model`` are None until a model is loaded."""

    @property
    def state(self) -> EngineChanged: ...
    @property
    def model(self) -> str | None: ...
    @property
    def facts(self) -> EngineFactsView | None: ...
    @property
    def stats(self) -> EngineStatsView: ...
    def ask(self, ask: Ask) -> AskedView: ...


class FrameHeaderView(Protocol):
    """The newest frame of a live source."""

    @property
    def seq(self) -> int: ...
    @property
    def t_capture_ns(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def height(self) -> int: ...


class RunnerStatsView(Protocol):
    """Counters of a source since the daemon started."""

    @property
    def frames(self) -> int: ...
    @property
    def reconnects(self) -> int: ...
    @property
    def stalls(self) -> int: ...
    @property
    def fps(self) -> float: ...


class RunnerView(Protocol):
    """`runtime.captiond.capture.supervisor.SourceRunner`."""

    @property
    def stats(self) -> RunnerStatsView: ...
    def newest(self) -> FrameHeaderView | None: ...


class HistoryEntryView(Protocol):
    """A caption and the JPEG of its frame, made when it was new."""

    @property
    def finished(self) -> CaptionFinished: ...
    @property
    def jpeg(self) -> bytes | None: ...


class CaptionerStatsView(Protocol):
    """``missed``: due times that passed without a caption; ``unchanged``: scenes that were skipped."""

    @property
    def missed(self) -> int: ...
    @property
    def unchanged(self) -> int: ...


class CaptionerView(Protocol):
    """`runtime.captiond.captioning.Captioner`."""

    @property
    def stats(self) -> CaptionerStatsView: ...

    @property
    def paused(self) -> bool: ...
    @property
    def prompts(self) -> Sequence[PromptSettings]: ...
    @property
    def captions_per_s(self) -> float: ...
    @property
    def history(self) -> Collection[HistoryEntryView]: ...
    async def jpeg_of(self, caption: int) -> bytes | None: ...
    @property
    def prompt_id(self) -> str: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def set_prompts(self, prompts: Sequence[PromptSettings]) -> None: ...
    def set_cadence(self, captions_per_s: float) -> None: ...


class JpegView(Protocol):
    """One encoded picture and the frame it shows."""

    @property
    def data(self) -> bytes: ...
    @property
    def seq(self) -> int: ...


class PicturesView(Protocol):
    """`runtime.captiond.pictures.client.Pictures`."""

    async def jpeg(
        self,
        source: str,
        *,
        slot: tuple[int, int] | None = None,
        after_seq: int = -1,
        max_side_px: int,
        quality: int = 80,
        overlay: str | None = None,
    ) -> JpegView | None: ...
    async def decode(self, data: bytes) -> SharedImage: ...


class OutputView(Protocol):
    """Counters of one output (terminal, jsonl, mqtt, a webhook)."""

    @property
    def delivered(self) -> int: ...
    @property
    def errors(self) -> int: ...


@dataclass(frozen=True, slots=True)
class SourceView:
    """One source: its settings, what captures it and what captions it."""

    settings: SourceSettings
    runner: RunnerView
    captioner: CaptionerView


@dataclass(frozen=True, slots=True)
class About:
    """Which program this is."""

    version: str
    host: str
    started_ns: int


@dataclass(slots=True)
class Services:
    """What the daemon gives its routes. ``server`` is replaced when the configuration is read again.

    ``sources`` may gain and lose members while the daemon runs. ``watchdog_margin_s``: seconds until the watchdog
    would bite, None without one. ``processes``: process ids by kind ("main", "engine", "capture", "pictures",
    "zygote"). ``board``: telemetry of the board, None where there is none.
    """

    bus: BusView
    engine: EngineView
    sources: Mapping[str, SourceView]
    pictures: PicturesView
    metrics: Metrics
    server: ServerSettings
    about: About
    clock: Clock
    watchdog_margin_s: Callable[[], float | None] = lambda: None
    processes: Callable[[], Mapping[str, Iterable[int]]] = dict
    outputs: Mapping[str, OutputView] = field(default_factory=dict)
    board: Callable[[], Mapping[str, object] | None] = lambda: None
