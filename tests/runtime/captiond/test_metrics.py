"""Metrics: counted from events, and read by Prometheus' own parsers."""

from __future__ import annotations

import asyncio
import os

import pytest
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from runtime.captiond.events import CaptionFailed, ChatFinished, Notice
from runtime.captiond.metrics import MAX_SERIES, Distribution, Metrics, Tally
from runtime.captiond.process_memory import memory_of
from tests.runtime.captiond import sample_events as made
from tests.runtime.captiond.http.parts import Running, client, services, serving

UNITS = ("_seconds", "_bytes", "_info", "_ratio")
# Gauges that count things, which have no unit.
PLAIN = {
    "vlm_engine_up", "vlm_engine_status", "vlm_source_status", "vlm_source_up", "vlm_source_paused", "vlm_rule_active",
    "vlm_requests_waiting", "vlm_requests_running", "vlm_bus_waiting", "vlm_http_connections", "vlm_http_watchers",
    "vlm_processes", "vlm_open_files", "vlm_model_sequence_tokens", "vlm_source_frames_per_second",
    "vlm_tokens_per_second",
}  # fmt: skip


def happen(running: Running) -> None:
    for event in (
        made.source_changed(), made.started(1), made.delta(1, 0, "a"), made.delta(1, 1, "b"), made.finished(1),
        made.rule(), CaptionFailed(2, "door", "what", "DeadlineError", "late"),
        CaptionFailed(3, "door", "what", "a\nb", "?"), ChatFinished("c", "stop", 40, 9, 55.0, 30.0),
        Notice("warning", "x", "y"),
    ):  # fmt: skip
        running.services.bus.publish(event)


async def page(running: Running, accept: str = "") -> tuple[str, str]:
    async with client() as session, session.get(running.url + "/metrics", headers={"Accept": accept}) as answer:
        assert answer.status == 200
        return await answer.text(), answer.headers["Content-Type"]


def test_there_are_the_promised_series_with_names_and_units_by_convention() -> None:
    async def main() -> None:
        parts = services()
        parts.processes = lambda: {"main": [os.getpid()]}
        async with serving(parts=parts) as running:
            happen(running)
            text, kind = await page(running)
            assert kind.startswith("text/plain")
            families = {family.name: family for family in text_string_to_metric_families(text)}
        assert len(families) >= 30
        for name, family in families.items():
            assert name.startswith("vlm_")
            assert family.documentation
            if family.type == "gauge":
                assert name.endswith(UNITS) or name in PLAIN, name
            if family.type == "histogram":
                assert name.endswith("_seconds"), name
            assert family.type != "unknown", name
            assert not name.endswith("_created")
        samples = {(s.name, *sorted(s.labels.items())): s.value for f in families.values() for s in f.samples}
        door = ("source", "door")
        for expected, value in {
            ("vlm_captions_total", ("finish_reason", "stop"), door): 1,
            ("vlm_caption_failures_total", ("error", "DeadlineError"), door): 1,
            ("vlm_caption_failures_total", ("error", "other"), door): 1,
            ("vlm_frames_dropped_total", ("cause", "superseded"), door): 2,
            ("vlm_frames_dropped_total", ("cause", "unchanged"), door): 8,
            ("vlm_time_to_first_token_seconds_count", ("kind", "caption")): 1,
            ("vlm_time_to_first_token_seconds_sum", ("kind", "chat")): 0.055,
            ("vlm_inter_token_latency_seconds_count", ("kind", "caption")): 1,
            ("vlm_frame_age_seconds_bucket", ("le", "0.1"), door): 1,
            ("vlm_frame_age_seconds_bucket", ("le", "0.05"), door): 0,
            ("vlm_source_up", door): 1,
            ("vlm_source_reconnects_total", door): 5,
            ("vlm_source_stalls_total", door): 6,
            ("vlm_source_status", door, ("state", "live")): 1,
            ("vlm_engine_deaths_total", ("cause", "killed")): 2,
            ("vlm_engine_restarts_total",): 2,
            ("vlm_engine_memory_bytes", ("class", "kv_cache")): 500,
            ("vlm_requests_waiting", ("kind", "chat")): 1,
            ("vlm_watchdog_margin_seconds",): 12.5,
            ("vlm_output_errors_total", ("output", "jsonl")): 12,
            ("vlm_bus_dropped_total", ("subscriber", "http")): 0,
            ("vlm_rule_active", ("rule", "dog"), door): 1,
            ("vlm_chat_tokens_total",): 9,
            ("vlm_notices_total", ("level", "warning")): 1,
            ("vlm_build_info", ("model", "demo-llava"), ("version", "1.2.3")): 1,
            ("vlm_processes", ("kind", "main")): 1,
        }.items():
            assert samples[expected] == pytest.approx(value), expected
        assert samples["vlm_resident_memory_bytes", ("kind", "main")] > 1e6

    asyncio.run(main())


def test_openmetrics_is_spoken_to_who_asks_for_it() -> None:
    async def main() -> None:
        async with serving() as running:
            happen(running)
            text, kind = await page(running, "application/openmetrics-text; version=1.0.0")
            assert kind.startswith("application/openmetrics-text")
            assert len(list(openmetrics.text_string_to_metric_families(text))) >= 30

    asyncio.run(main())


def test_what_clients_write_becomes_no_label() -> None:
    async def main() -> None:
        async with serving() as running, client() as session:
            for path in ("/nowhere-1", "/nowhere-2", "/api/sources/strange-name/history", "/page/strange-name"):
                async with session.request("PUT" if path == "/nowhere-2" else "GET", running.url + path) as answer:
                    assert answer.status in (404, 405)
            text, _ = await page(running)
            assert "strange" not in text.lower()
            assert "nowhere" not in text
            assert 'vlm_http_requests_total{method="other",route="other",status="404"} 1.0' in text

    asyncio.run(main())


def test_counting_stays_bounded_whatever_the_labels() -> None:
    tally, spread = Tally(), Distribution((1.0,))
    for number in range(2 * MAX_SERIES):
        tally.add((str(number),))
        spread.observe(0.5, (str(number),))
    assert len(list(tally.items())) == len(list(spread.items())) == MAX_SERIES
    tally.add(("1",))
    assert tally[("1",)] == 2


def test_buckets_are_cumulative_and_hold_their_upper_end() -> None:
    spread = Distribution((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 9.0):
        spread.observe(value)
    ((labels, buckets, total),) = spread.items()
    assert (labels, buckets, total) == ((), [("1.0", 2), ("2.0", 4), ("+Inf", 5)], 14.0)


def test_time_between_tokens_is_not_taken_across_captions() -> None:
    metrics = Metrics()
    for caption, index in ((1, 0), (1, 1), (2, 0), (2, 1), (2, 2)):
        metrics.event(made.delta(caption, index, "x"))
    ((_, buckets, _),) = metrics.between_tokens_s.items()
    assert buckets[-1] == ("+Inf", 3)


def test_memory_of_a_process_that_is_gone_is_nothing() -> None:
    found = memory_of({"main": [os.getpid()], "engine": [2**22 + 1], "none": []})
    assert found["main"].processes == 1
    assert found["main"].resident_bytes >= (found["main"].proportional_bytes or 0) > 1e6
    assert (found["engine"].processes, found["engine"].resident_bytes) == (0, 0)
    assert found["none"].processes == 0
