"""Defects of comparable programs, and the tests that keep them out of this one.

`KEPT_OUT` names each defect and the tests that would turn red; those that belong nowhere else are below.
"""

from __future__ import annotations

import ast
import asyncio
import itertools
import os
import time
from pathlib import Path

import aiohttp
import pytest

from runtime.captiond.events import CaptionFinished, CaptionStarted
from tests.imports import ROOT
from tests.peers.daemon import DEMO_VIDEO, RunningDaemon
from tests.runtime.captiond.captioning.test_captioner import World, play, running
from tests.runtime.captiond.engine.engines import caption, engine, ring_with, write
from tests.runtime.captiond.http.parts import ALL_KEYS, KEYS, serving
from tests.runtime.captiond.stand_in_engine import stand_in_command

_HERE = "tests/runtime/captiond"
KEPT_OUT = {
    "D1 a silent camera hangs the server": (
        f"{_HERE}/capture/test_probe.py::test_a_silent_server_costs_the_timeout_and_no_task",
        f"{_HERE}/capture/test_supervisor.py::test_no_first_frame_in_time_kills_the_child",
        f"{_HERE}/faults/test_camera_faults.py::test_a_network_that_carries_nothing_is_noticed_and_left",
    ),
    "D2 captions stop for good after a few attempts": (
        f"{_HERE}/capture/test_supervisor.py::test_a_source_that_never_delivered_is_tried_ever_more_seldom_and_spoken_of_once",
        f"{_HERE}/capture/test_supervisor.py::test_a_thousand_reconnects_leave_nothing_behind",
        f"{_HERE}/faults/test_camera_faults.py::test_a_real_server_that_is_killed_stopped_and_emptied_is_seen_again",
    ),
    "D3 an error is given out as a caption": (
        f"{_HERE}/captioning/test_captioner.py::test_errors_never_become_captions_and_a_failing_prompt_rests_longer_each_time",
        f"{_HERE}/test_journal.py::test_a_failing_prompt_is_logged_once_until_it_succeeds",
    ),
    "D4 a setting of one changes that of all": (f"{_HERE}/test_rivals.py::test_settings_of_one_source_are_its_own",),
    "D5 credentials in logs and URLs, anyone may ask": (
        f"{_HERE}/test_redaction.py::test_a_secret_is_cut_out_of_a_message_and_the_rest_stays",
        f"{_HERE}/http/test_routes.py::test_the_credentials_of_a_source_are_not_shown",
        f"{_HERE}/http/test_gate.py::test_an_address_that_others_reach_is_not_served_without_a_key",
        f"{_HERE}/http/test_gate.py::test_the_log_names_keys_and_never_holds_them",
        f"{_HERE}/test_rivals.py::test_a_key_in_a_url_is_no_key",
    ),
    "D6 clients that do not read make memory grow": (
        f"{_HERE}/faults/test_watcher_faults.py::test_ten_stalled_clients_cost_bounded_memory_and_the_others_miss_nothing",
        f"{_HERE}/faults/test_watcher_faults.py::test_a_client_that_vanishes_is_forgotten",
        f"{_HERE}/http/test_gate.py::test_sessions_are_bounded",
    ),
    "D7 a debugging server, WebSocket messages of any length": (
        f"{_HERE}/http/test_streams.py::test_a_websocket_takes_no_bytes_and_no_long_messages",
        f"{_HERE}/http/test_gate.py::test_errors_have_the_shape_of_the_openai_api_and_no_words_of_python",
        f"{_HERE}/test_rivals.py::test_no_server_debugs_and_no_socket_is_without_a_limit",
    ),
    "D8 pickles and code of strangers": (
        "tests/export/test_checkpoint.py::test_pickle_checkpoint_is_refused_with_the_command_that_converts_it",
        "tests/export/test_convert.py::test_code_in_a_pickle_is_refused_and_not_run",
        "tests/export/decoder/test_weight_files.py::test_a_pickle_is_refused_with_the_command_that_converts_it",
    ),
    "D9 a busy loop without standard input": (
        f"{_HERE}/test_rivals.py::test_an_idle_daemon_without_standard_input_does_not_spin",
        f"{_HERE}/test_rivals.py::test_nothing_reads_standard_input",
    ),
    "D10 bad frames leak": (
        f"{_HERE}/capture/test_child.py::test_endless_damaged_pictures_end_the_attempt",
        f"{_HERE}/engine/test_client.py::test_caption_names_the_newest_frame_and_keeps_it_in_place_until_its_end",
        f"{_HERE}/faults/test_camera_faults.py::test_damaged_pictures_harm_nobody_and_good_ones_are_seen_again",
    ),
    "D11 a URL becomes part of a pipeline": (
        f"{_HERE}/capture/test_gst_child.py::test_no_location_runs_an_element_a_protocol_or_a_command",
        f"{_HERE}/capture/test_gst_child.py::test_a_location_stands_as_the_value_of_a_property",
        f"{_HERE}/test_command.py::test_contradictions_are_refused_with_what_to_do",
    ),
    "D12 clients make the server fetch anything": (
        f"{_HERE}/openai/test_remote.py::test_no_connection_is_tried_to_hosts_that_are_not_public",
        f"{_HERE}/openai/test_remote.py::test_no_connection_is_tried_for_urls_that_are_no_plain_web_addresses",
        f"{_HERE}/openai/test_remote.py::test_a_body_without_a_length_is_cut_off_at_the_limit",
        f"{_HERE}/openai/test_remote.py::test_nothing_is_fetched_unless_it_is_switched_on",
    ),
    "D13 captions of old frames": (
        f"{_HERE}/captioning/test_captioner.py::test_no_frame_is_captioned_twice_and_the_newest_one_is_taken",
        f"{_HERE}/test_rivals.py::test_no_caption_is_older_than_a_frame_and_an_answer_however_slow_the_engine_is",
        f"{_HERE}/test_rivals.py::test_a_question_that_had_to_wait_is_asked_of_the_frame_that_is_newest_then",
    ),
    "D14 what runs on the board needs what exports": (
        "tests/guard/test_layers.py::test_importing_runtime_meets_no_build_time_library_and_no_opencv",
        "tests/guard/test_layers.py::test_every_module_of_runtime_and_kernels_loads_without_the_build_time_libraries",
    ),
}


@pytest.mark.parametrize("defect", KEPT_OUT)
def test_each_defect_is_kept_out_by_tests_that_exist(defect: str) -> None:
    for name in KEPT_OUT[defect]:
        file, _, test = name.partition("::")
        tests = {node.name for node in ast.parse((ROOT / file).read_text()).body if isinstance(node, ast.FunctionDef)}
        assert test in tests, name


def test_settings_of_one_source_are_its_own() -> None:
    async def story() -> None:
        one, other = World(), World()
        async with running(one) as captioner:
            captioner.set_cadence(2)
            captioner.set_prompts(())
            captioner.pause()
            assert (other.captioner.captions_per_s, other.captioner.paused) == (0, False)
            await other.clock.advance(0)
        other.frames.ring.close()

    play(story)


def test_a_key_in_a_url_is_no_key() -> None:
    async def main() -> None:
        async with serving(keys=ALL_KEYS) as server, aiohttp.ClientSession() as session:
            for name in ("key", "api_key", "token", "access_token", "authorization"):
                async with session.get(f"{server.url}/api/state?{name}={KEYS['all']}") as answer:
                    assert answer.status == 401

    asyncio.run(main())


def _modules() -> list[tuple[Path, ast.Module]]:
    paths = sorted((ROOT / "runtime" / "captiond").rglob("*.py"))
    return [(path, ast.parse(path.read_text(encoding="utf-8"))) for path in paths]


def test_no_server_debugs_and_no_socket_is_without_a_limit() -> None:
    sockets = 0
    for path, module in _modules():
        for call in (node for node in ast.walk(module) if isinstance(node, ast.Call)):
            given = {item.arg: item.value for item in call.keywords}
            debug = given.get("debug")
            assert debug is None or (isinstance(debug, ast.Constant) and debug.value is False), path
            if ast.unparse(call.func).endswith("WebSocketResponse"):
                sockets += 1
                limit = given.get("max_msg_size")
                assert limit is not None and not (isinstance(limit, ast.Constant) and not limit.value), path
    assert sockets


def test_nothing_reads_standard_input() -> None:
    for path, module in _modules():
        for node in ast.walk(module):
            assert not (isinstance(node, ast.Call) and ast.unparse(node.func) == "input"), path
            assert not (isinstance(node, ast.Attribute) and ast.unparse(node) == "sys.stdin"), path


def test_an_idle_daemon_without_standard_input_does_not_spin(tmp_path: Path) -> None:
    """Its input is at its end, its source paused, another one away: all its processes together rest."""
    sources = [
        {"name": "film", "uri": str(DEMO_VIDEO), "loop": True, "paused": True},
        {"name": "gone", "uri": "rtsp://127.0.0.1:9/none"},
    ]
    with RunningDaemon(tmp_path, sources) as daemon:
        daemon.wait(lambda state: state["engine"]["status"] == "ready")
        daemon.wait(lambda state: daemon.source(state, "film")["frames"] > 20)
        processes = [daemon.process.pid, *daemon.children()]
        before, begun = {pid: _busy_s(pid) for pid in processes}, time.monotonic()
        daemon.wait(lambda state: daemon.source(state, "film")["frames"] > 60)
        spent_s = {pid: _busy_s(pid) - before[pid] for pid in processes}
        assert max(spent_s.values()) < 0.25 * (time.monotonic() - begun), spent_s


def _busy_s(pid: int) -> float:
    """Processor time of a process, seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize("token_s", [0.01, 0.5, 7.0])
def test_no_caption_is_older_than_a_frame_and_an_answer_however_slow_the_engine_is(token_s: float) -> None:
    async def story() -> None:
        fps, world = 10, World()
        world.engine.token_s = token_s
        answer_ms = 1e3 * token_s * len(world.engine.text.split())
        async with running(world):
            await world.film(max(5, 8 * answer_ms / 1e3), fps)
            finished = world.of(CaptionFinished)
            assert len(finished) >= 3
            for event in finished:
                assert event.age_last_ms <= answer_ms + 1e3 / fps + 1e-6
            begun = [event.frame.seq for event in world.of(CaptionStarted)]
            assert all(later > earlier for earlier, later in itertools.pairwise(begun))

    play(story)


def test_a_question_that_had_to_wait_is_asked_of_the_frame_that_is_newest_then() -> None:
    """One slot, two sources: the second's turn comes late, and its frame is not the one of when it was asked."""

    async def main() -> None:
        async with engine(stand_in_command(token_s=0.005), captions=1) as made:
            rings = {name: ring_with((8, 6)) for name in ("door", "yard")}
            for name, ring in rings.items():
                made.client.attach_source(name, ring)
            first = made.client.ask(caption("door", text='{"do": "endless"}'))
            await first.started()
            second = made.client.ask(caption("yard"))
            await anext(aiter(first))
            for seq in range(1, 20):
                write(rings["yard"], seq)
            assert second.frame is None
            first.cancel()
            await first.result()
            frame = await second.started()
            assert frame is not None and frame.seq == 19
            await second.result()
            for name, ring in rings.items():
                made.client.detach_source(name)
                ring.close()

    asyncio.run(main())
