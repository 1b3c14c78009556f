"""The page /metrics: every series with its name, help and unit, made when Prometheus asks.

Names follow Prometheus' conventions: base units (seconds, bytes) in the name, counters end in ``_total``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from runtime.captiond.clock import NS_PER_S
from runtime.captiond.events import EngineStatus, SourceStatus
from runtime.captiond.http.services import Services, SourceView
from runtime.captiond.metrics import Distribution, Tally

if TYPE_CHECKING:
    from runtime.captiond.http.latest import Latest
    from runtime.captiond.process_memory import ProcessMemory

SOURCE_STATES: tuple[SourceStatus, ...] = ("connecting", "live", "no_signal", "ended", "paused")
ENGINE_STATES: tuple[EngineStatus, ...] = ("loading", "ready", "restarting", "degraded", "stopped")


class Exposition(Collector):
    """Collects everything at once. ``memory`` was measured before, outside of the event loop."""

    def __init__(
        self,
        services: Services,
        latest: Latest,
        connections: Callable[[], int],
        watchers: Callable[[], Mapping[str, int]],
    ) -> None:
        self._services, self._latest = services, latest
        self._connections, self._watchers = connections, watchers
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        self.memory: Mapping[str, ProcessMemory] = {}

    def render(self, accept: str) -> tuple[bytes, str]:
        """The page and its Content-Type, as ``accept`` wants it: the text format or OpenMetrics."""
        encoder, content_type = choose_encoder(accept)
        return encoder(self._registry), content_type

    def describe(self) -> Iterable[Metric]:
        """Nothing is registered by name."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Every family."""
        yield from self._about()
        yield from self._engine()
        yield from self._sources()
        yield from self._answers()
        yield from self._http()
        yield from self._outputs()
        yield from self._memory()

    def _about(self) -> Iterator[Metric]:
        about, engine = self._services.about, self._services.engine
        build = GaugeMetricFamily("vlm_build_info", "Version and model.", labels=("version", "model"))
        build.add_metric((about.version, engine.model or ""), 1)
        yield build
        up_s = (self._services.clock.now_ns() - about.started_ns) / NS_PER_S
        yield _gauge("vlm_uptime_seconds", "Time since the daemon started.", up_s)
        margin = self._services.watchdog_margin_s()
        if margin is not None:
            yield _gauge("vlm_watchdog_margin_seconds", "Time until the watchdog would stop the daemon.", margin)

    def _engine(self) -> Iterator[Metric]:
        engine = self._services.engine
        state, stats, facts = engine.state, engine.stats, engine.facts
        yield _gauge("vlm_engine_up", "1: the engine answers.", float(state.status == "ready"))
        yield _states("vlm_engine_status", "1 at the state that the engine is in.", ENGINE_STATES, state.status)
        yield _counter("vlm_engine_restarts", "Times that the engine was started again.", stats.restarts)
        deaths = CounterMetricFamily(
            "vlm_engine_deaths", "Ends of the engine that nobody asked for.", labels=("cause",)
        )
        for cause, count in sorted(stats.deaths.items()):
            deaths.add_metric((cause,), count)
        yield deaths
        if state.load_s is not None:
            yield _gauge("vlm_engine_load_seconds", "Time of the last load.", state.load_s)
        yield _counter("vlm_engine_asks", "Questions taken.", stats.asks)
        yield _counter("vlm_engine_tokens", "Tokens that the engine sent.", stats.tokens)
        yield _counter("vlm_chat_requests_refused", "Chat requests refused, the queue being full.", stats.refused)
        yield _counter("vlm_chat_requests_retried", "Chat requests asked again of a new engine.", stats.retries)
        for name, help_text, chats, captions in (
            ("vlm_requests_waiting", "Questions that wait for a KV slot.", stats.waiting, stats.captions_waiting),
            ("vlm_requests_running", "Questions being answered.", stats.running, stats.captions_running),
        ):
            family = GaugeMetricFamily(name, help_text, labels=("kind",))
            family.add_metric(("chat",), chats)
            family.add_metric(("caption",), captions)
            yield family
        if facts is not None:
            yield _gauge("vlm_model_sequence_tokens", "Longest sequence of the model.", facts.max_seq_len)
            purposes = GaugeMetricFamily(
                "vlm_engine_memory_bytes", "What the engine reports by purpose.", labels=("class",)
            )
            for purpose, size in facts.memory_bytes.items():
                purposes.add_metric((purpose,), size)
            yield purposes

    def _sources(self) -> Iterator[Metric]:
        now_ns = self._services.clock.now_ns()
        sources = dict(self._services.sources)
        status = GaugeMetricFamily("vlm_source_status", "1 at the state of a source.", labels=("source", "state"))
        for name in sources:
            for state in SOURCE_STATES:
                status.add_metric((name, state), float(self._latest.source_status(name) == state))
        yield status

        def age_s(view: SourceView) -> float | None:
            newest = view.runner.newest()
            return None if newest is None else (now_ns - newest.t_capture_ns) / NS_PER_S

        readings: tuple[tuple[str, str, bool, Callable[[str, SourceView], float | None]], ...] = (
            ("vlm_source_up", "1: frames come.", False, lambda name, _: self._latest.source_status(name) == "live"),
            ("vlm_source_paused", "1: nothing is captioned.", False, lambda _, view: view.captioner.paused),
            ("vlm_source_frames_per_second", "Frame rate.", False, lambda _, view: view.runner.stats.fps),
            ("vlm_source_newest_frame_age_seconds", "Age of the newest frame.", False, lambda _, view: age_s(view)),
            ("vlm_source_frames", "Frames captured.", True, lambda _, view: view.runner.stats.frames),
            ("vlm_source_reconnects", "Times that frames came again.", True, lambda _, v: v.runner.stats.reconnects),
            ("vlm_source_stalls", "Times that frames stayed away.", True, lambda _, view: view.runner.stats.stalls),
            ("vlm_captions_missed", "Due times without a caption.", True, lambda _, view: view.captioner.stats.missed),
        )
        for metric, help_text, counts, read in readings:
            family = (CounterMetricFamily if counts else GaugeMetricFamily)(metric, help_text, labels=("source",))
            for name, view in sources.items():
                value = read(name, view)
                if value is not None:
                    family.add_metric((name,), float(value))
            yield family

    def _answers(self) -> Iterator[Metric]:
        seen = self._services.metrics
        yield _tally("vlm_captions_started", "Captions begun.", seen.captions_started, "source")
        yield _tally("vlm_captions", "Captions written to their end.", seen.captions, "source", "finish_reason")
        yield _tally("vlm_caption_failures", "Captions that failed.", seen.caption_failures, "source", "error")
        yield _tally("vlm_caption_tokens", "Tokens of captions.", seen.caption_tokens, "source")
        yield self._dropped()
        yield _tally("vlm_chats", "Chat requests answered.", seen.chats, "finish_reason")
        yield _tally("vlm_chat_tokens", "Tokens of chat answers.", seen.chat_tokens)
        yield _tally("vlm_chat_prompt_tokens", "Tokens of chat prompts.", seen.chat_prompt_tokens)
        yield _tally("vlm_stage_seconds", "Time spent on captions by stage.", seen.stage_s, "stage")
        yield _tally("vlm_notices", "Notices by level.", seen.notices, "level")
        for metric, help_text, seconds, label in (
            ("vlm_time_to_first_token_seconds", "From the question to its first token.", seen.first_token_s, "kind"),
            ("vlm_inter_token_latency_seconds", "From token to token.", seen.between_tokens_s, "kind"),
            ("vlm_frame_age_seconds", "Age of the frame at the first token.", seen.frame_age_s, "source"),
            ("vlm_caption_age_seconds", "Age of the frame at the last token.", seen.caption_age_s, "source"),
        ):
            yield _histogram(metric, help_text, seconds, label)
        rate = GaugeMetricFamily("vlm_tokens_per_second", "Speed of the last answer.", labels=("kind",))
        for kind, value in seen.tokens_per_s.items():
            rate.add_metric((kind,), value)
        yield rate
        yield _tally("vlm_rule_changes", "Changes of a rule.", seen.rule_changes, "source", "rule")
        active = GaugeMetricFamily("vlm_rule_active", "1: the rule is active.", labels=("source", "rule"))
        for labels, holds in list(seen.rules_active.items()):
            active.add_metric(labels, float(holds))
        yield active

    def _dropped(self) -> Metric:
        """A newer frame came before this one's turn ("superseded"), or it showed nothing new ("unchanged")."""
        family = CounterMetricFamily(
            "vlm_frames_dropped", "Frames not captioned, by cause.", labels=("source", "cause")
        )
        for name, view in dict(self._services.sources).items():
            family.add_metric((name, "superseded"), self._services.metrics.frames_passed[(name,)])
            family.add_metric((name, "unchanged"), view.captioner.stats.unchanged)
        return family

    def _http(self) -> Iterator[Metric]:
        seen = self._services.metrics
        yield _tally("vlm_http_requests", "Requests answered.", seen.http_requests, "route", "method", "status")
        yield _histogram("vlm_http_request_seconds", "Time of requests, streams apart.", seen.http_s, "route")
        yield _tally("vlm_http_refusals", "Requests that were not let in.", seen.http_refusals, "cause")
        yield _tally("vlm_http_cut_connections", "Connections cut off.", seen.connections_closed, "cause")
        yield _gauge("vlm_http_connections", "Open connections.", self._connections())
        watchers = GaugeMetricFamily("vlm_http_watchers", "Clients that watch.", labels=("kind",))
        for kind, count in self._watchers().items():
            watchers.add_metric((kind,), count)
        yield watchers
        yield _tally("vlm_http_events_sent", "Events sent to watchers.", seen.events_sent, "kind")
        yield _tally("vlm_http_events_missed", "Events that watchers were too slow for.", seen.events_missed, "kind")

    def _outputs(self) -> Iterator[Metric]:
        dropped = CounterMetricFamily("vlm_bus_dropped", "Events lost by slow consumers.", labels=("subscriber",))
        waiting = GaugeMetricFamily("vlm_bus_waiting", "Events that wait for a consumer.", labels=("subscriber",))
        for name, stats in self._services.bus.stats().items():
            dropped.add_metric((name,), stats.dropped)
            waiting.add_metric((name,), stats.waiting)
        yield dropped
        yield waiting
        delivered = CounterMetricFamily("vlm_output_delivered", "Events that an output delivered.", labels=("output",))
        errors = CounterMetricFamily("vlm_output_errors", "Errors of an output.", labels=("output",))
        for name, output in self._services.outputs.items():
            delivered.add_metric((name,), output.delivered)
            errors.add_metric((name,), output.errors)
        yield delivered
        yield errors

    def _memory(self) -> Iterator[Metric]:
        count = GaugeMetricFamily("vlm_processes", "Processes by kind.", labels=("kind",))
        resident = GaugeMetricFamily("vlm_resident_memory_bytes", "Resident memory by kind.", labels=("kind",))
        shared = GaugeMetricFamily("vlm_proportional_memory_bytes", "Proportional memory (PSS).", labels=("kind",))
        for kind, memory in self.memory.items():
            count.add_metric((kind,), memory.processes)
            resident.add_metric((kind,), memory.resident_bytes)
            if memory.proportional_bytes is not None:
                shared.add_metric((kind,), memory.proportional_bytes)
        yield from (count, resident, shared)
        yield _gauge(
            "vlm_open_files",
            "File descriptors of the main process.",
            sum(1 for _ in Path("/proc/self/fd").iterdir()) - 1,
        )


def _gauge(name: str, help_text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, help_text, value=value)


def _counter(name: str, help_text: str, value: float) -> Metric:
    return CounterMetricFamily(name, help_text, value=value)


def _states(name: str, help_text: str, states: Iterable[str], now: str) -> Metric:
    family = GaugeMetricFamily(name, help_text, labels=("state",))
    for state in states:
        family.add_metric((state,), float(state == now))
    return family


def _tally(name: str, help_text: str, tally: Tally, *labels: str) -> Metric:
    if not labels:
        return CounterMetricFamily(name, help_text, value=tally[()])
    family = CounterMetricFamily(name, help_text, labels=labels)
    for values, amount in tally.items():
        family.add_metric(values, amount)
    return family


def _histogram(name: str, help_text: str, seconds: Distribution, *labels: str) -> Metric:
    family = HistogramMetricFamily(name, help_text, labels=labels)
    for values, buckets, total in seconds.items():
        family.add_metric(values, buckets, total)
    return family
