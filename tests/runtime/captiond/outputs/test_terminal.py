"""The terminal output: lines for people and for programs, and a reader who is slow, stuck or gone."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import shutil
import subprocess
import sys
import time
import tty
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.captiond.bus import Bus
from runtime.captiond.clock import Clock
from runtime.captiond.config.settings import SourceSettings, TerminalSettings
from runtime.captiond.events import CaptionFailed, Event
from runtime.captiond.outputs.terminal import Terminal, TerminalLines
from tests.runtime.captiond.outputs.running import eventually, notices, running
from tests.runtime.captiond.sample_events import delta, finished, rule, source_changed, started

ROOT = Path(__file__).resolve().parents[4]
DOOR, YARD = (SourceSettings(name=name, uri="a.mp4") for name in ("door", "yard"))
HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31m\rnew\nline\u202e\u2028\x00end"
LINE = "door  frame     1  a red ball  (age 82 ms, 91 tok/s, 2 skipped)\n"


def shown(events: Sequence[Event], *, live: bool = False, color: bool = False) -> str:
    lines = TerminalLines(color=color)
    lines.live = live
    return "".join(map(lines.text, events))


def test_a_caption_is_one_line_with_its_facts() -> None:
    assert shown([started(1), delta(1, 0, "a red"), finished(1)]) == LINE
    assert "ended by length" in shown([finished(1, finish_reason="length")])
    assert "tok/s" not in shown([finished(1, "yes", tokens=1, tokens_per_s=0.0)])
    assert shown([rule()]) == "door  rule dog  ON  (yes)\n"
    assert shown([source_changed()]) == ""


def test_live_captions_appear_piece_by_piece_and_end_as_the_same_line() -> None:
    lines = TerminalLines(color=False)
    lines.live = True
    assert lines.text(started(1)) == "door  frame     1  "
    assert [lines.text(delta(1, number, text)) for number, text in enumerate(("a red", " ball"))] == ["a red", " ball"]
    assert lines.text(finished(1)) == LINE.split("ball")[1]


def test_a_live_caption_that_lost_a_piece_is_written_again_whole() -> None:
    assert shown([started(1), delta(1, 0, "a re"), finished(1)], live=True) == "door  frame     1  a re\n" + LINE


def test_a_caption_that_failed_or_was_overtaken_ends_its_line() -> None:
    failed = CaptionFailed(1, "door", "default", "EngineError", "it died")
    assert shown([started(1), delta(1, 0, "a"), failed, rule()], live=True).endswith("  a\ndoor  rule dog  ON  (yes)\n")
    assert shown([started(1), finished(2)], live=True).count("\n") == 2
    assert "died" not in shown([failed])


@given(st.text(max_size=60), st.booleans())
def test_no_text_writes_controls_or_lines_of_its_own(text: str, live: bool) -> None:
    written = shown([started(1), delta(1, 0, text), finished(1, text)], live=live)
    assert not set(written) & set(map(chr, [*range(10), *range(11, 32), 0x7F, *range(0x80, 0xA0), 0x202E, 0x2028]))
    assert written.count("\n") <= 2


def output(bus: Bus, fd: int, sources: Sequence[SourceSettings] = (DOOR,), style: str = "auto", **env: str) -> Terminal:
    return Terminal(TerminalSettings(style=style), bus, Clock(), sources, fd=fd, environment=env)


def through_pty(events: Sequence[Event], sources: Sequence[SourceSettings] = (DOOR,), **env: str) -> str:
    """What a terminal gets."""
    ours, theirs = pty.openpty()
    tty.setraw(theirs)

    async def main() -> None:
        bus = Bus()
        async with running(output(bus, theirs, sources, **env)):
            for event in events:
                bus.publish(event)

    asyncio.run(main())
    try:
        return os.read(ours, 100_000).decode()
    finally:
        os.close(ours)
        os.close(theirs)


def test_one_source_on_a_terminal_is_shown_live_and_several_are_not() -> None:
    events = [started(1), delta(1, 0, "a re"), delta(1, 1, "d box")]
    assert "a red box" in through_pty(events)
    assert through_pty([*events, rule()], (DOOR, YARD)).startswith("\x1b[2mdoor  rule")


def test_colours_are_for_terminals_without_no_color() -> None:
    assert "\x1b[2m" in through_pty([finished(1)])
    assert through_pty([finished(1)], NO_COLOR="1") == LINE
    assert through_pty([finished(1)], TERM="dumb") == LINE


def through_pipe(events: Sequence[Event], style: str = "auto") -> bytes:
    ours, theirs = os.pipe()

    async def main() -> None:
        bus = Bus()
        async with running(output(bus, theirs, style=style)):
            for event in events:
                bus.publish(event)

    asyncio.run(main())
    os.close(theirs)
    with open(ours, "rb") as reader:
        return reader.read()


def test_a_pipe_gets_whole_lines_without_colours() -> None:
    assert through_pipe([started(1), delta(1, 0, "x"), finished(1), finished(2)]).decode() == LINE + LINE.replace(
        "    1", "    2"
    )


def test_json_style_is_one_object_per_caption_and_rule() -> None:
    written = through_pipe([source_changed(), started(1), finished(1, HOSTILE), rule()], "json")
    assert written.isascii()
    caption, fired = map(json.loads, written.splitlines())
    assert (caption["type"], fired["type"], caption["frame"]["seq"]) == ("caption", "rule", 1)
    assert b"\x1b" not in written and b"\x07" not in written


def test_a_pipe_that_nobody_reads_stops_nothing_but_this_output() -> None:
    ours, theirs = os.pipe()

    async def main() -> None:
        bus = Bus()
        one = output(bus, theirs)
        other = bus.subscribe("other", 5000)
        async with running(one, close_s=0.05) as task:
            for number in range(3000):
                bus.publish(finished(number, "x" * 500))
                if number % 50 == 0:
                    await asyncio.sleep(0)
            assert (other.waiting, other.dropped) == (3000, 0)
            assert one.subscription.waiting <= one.subscription.capacity
            assert not task.done()
        assert one.dropped > 2000

    asyncio.run(main())
    os.close(ours)  # the stuck thread gets EPIPE
    os.close(theirs)


def test_a_reader_who_has_gone_ends_this_output_with_one_notice() -> None:
    ours, theirs = os.pipe()

    async def main() -> None:
        bus = Bus()
        told = notices(bus)
        one = output(bus, theirs)
        task = asyncio.ensure_future(one.run())
        bus.publish(finished(1))
        await eventually(lambda: one.delivered == 1)
        os.close(ours)
        bus.publish(finished(2))
        await task
        bus.publish(finished(3))
        assert (one.state, one.delivered, one.dropped, one.errors) == ("ended", 1, 1, 1)
        assert [notice.message for notice in told] == ["standard output takes no more: Broken pipe"]

    asyncio.run(main())
    os.close(theirs)


def test_a_full_disk_costs_the_captions_that_do_not_fit_and_it_goes_on_when_there_is_room(tmp_path: Path) -> None:
    path = tmp_path / "captions.txt"

    async def main() -> None:
        bus = Bus()
        told = notices(bus)
        full, room = os.open("/dev/full", os.O_WRONLY), os.open(path, os.O_WRONLY | os.O_CREAT)
        one = output(bus, full)
        task = asyncio.ensure_future(one.run())
        bus.publish(finished(1))
        await eventually(lambda: one.errors == 1)
        bus.publish(finished(2))
        await eventually(lambda: one.dropped == 2)
        os.dup2(room, full)
        bus.publish(finished(3, "a blue ball"))
        await eventually(lambda: one.delivered == 1)
        assert one.state == "working"
        await one.close(1)
        await task
        os.close(full)
        os.close(room)
        assert [notice.level for notice in told] == ["warning", "info"]

    asyncio.run(main())
    assert path.read_text().count("\n") == 1 and "a blue ball" in path.read_text()


def test_a_descriptor_that_was_made_non_blocking_gets_everything() -> None:
    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)
    text = "y" * 3000

    async def main() -> int:
        bus = Bus()
        got = b""
        os.set_blocking(ours, False)
        async with running(output(bus, theirs)):
            for number in range(100):
                bus.publish(finished(number, text))
            while got.count(b"\n") < 100:
                await asyncio.sleep(0.001)
                try:
                    got += os.read(ours, 65536)
                except BlockingIOError:
                    continue
        return got.count(text.encode())

    assert asyncio.run(main()) == 100
    os.close(ours)
    os.close(theirs)


SHOW = """
import asyncio
from runtime.captiond.bus import Bus
from runtime.captiond.clock import Clock
from runtime.captiond.config.settings import SourceSettings, TerminalSettings
from runtime.captiond.outputs.terminal import Terminal
from tests.runtime.captiond.outputs.test_terminal import HOSTILE
from tests.runtime.captiond.sample_events import delta, finished, rule, started

async def main():
    bus = Bus()
    one = Terminal(TerminalSettings(), bus, Clock(), [SourceSettings(name="door", uri="a.mp4")])
    task = asyncio.ensure_future(one.run())
    bus.publish(finished(1, HOSTILE))
    for event in (started(2), delta(2, 0, HOSTILE), finished(2, HOSTILE), finished(3, "last one")):
        bus.publish(event)
    await one.close(5)
    await task

asyncio.run(main())
"""


def test_hostile_captions_leave_a_real_terminal_as_it_was(tmp_path: Path) -> None:
    if shutil.which("tmux") is None:
        pytest.skip("needs tmux (Debian: tmux)")
    (tmp_path / "show.py").write_text(SHOW, encoding="utf-8")
    server = ["tmux", "-S", str(tmp_path / "socket"), "-f", "/dev/null"]
    show = f"PYTHONPATH={ROOT} {sys.executable} {tmp_path / 'show.py'}"
    command = f"printf 'before\\n'; {show}; printf 'after\\n'; sleep 60"
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}
    subprocess.run([*server, "new-session", "-d", "-x", "120", "-y", "20", command], check=True, env=environment)
    try:
        end = time.monotonic() + 30
        screen = ""
        while "after" not in screen and time.monotonic() < end:
            time.sleep(0.05)
            screen = _said(server, "capture-pane", "-p")
        lines = [line for line in screen.splitlines() if line]
        clean = "]0;owned[2J31m new line end"
        assert lines[0] == "before"
        assert [clean in line for line in lines[1:3]] == [True, True]
        assert "last one" in lines[3] and lines[4] == "after"
        assert "owned" not in _said(server, "display-message", "-p", "#{pane_title}")
    finally:
        subprocess.run([*server, "kill-server"], check=False)


def _said(server: list[str], *command: str) -> str:
    return subprocess.run([*server, *command], check=True, capture_output=True, text=True).stdout
