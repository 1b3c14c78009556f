"""The JSON lines output: what it writes, a disk that is full, one that hangs, and a torn line at the start."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from runtime.captiond.bus import Bus
from runtime.captiond.clock import Clock
from runtime.captiond.config.settings import JsonlSettings
from runtime.captiond.events import CaptionFinished
from runtime.captiond.outputs import lines_file
from runtime.captiond.outputs.jsonl import Jsonl
from tests.runtime.captiond.clocks import ManualClock
from tests.runtime.captiond.outputs.running import eventually, notices, running
from tests.runtime.captiond.sample_events import delta, finished, rule, source_changed, started


def output(bus: Bus, path: Path, clock: Clock | None = None, **settings: Any) -> Jsonl:
    return Jsonl(JsonlSettings(path=str(path), **settings), bus, clock or Clock())


def lines(path: Path) -> list[dict[str, Any]]:
    data = path.read_bytes()
    assert data.isascii()
    assert data == b"" or data.endswith(b"\n")
    return [json.loads(one) for one in data.splitlines()]


def test_captions_and_rules_become_lines_of_ascii_in_order(tmp_path: Path) -> None:
    async def main() -> None:
        bus = Bus()
        one = output(bus, tmp_path / "lines")
        async with running(one):
            for event in (source_changed(), started(1), delta(1, 0, "ein"), finished(1, "ein\nBär \x1b[1m😀"), rule()):
                bus.publish(event)
        assert (one.delivered, one.dropped, one.errors, one.state) == (2, 0, 0, "ended")

    asyncio.run(main())
    caption, fired = lines(tmp_path / "lines")
    assert (caption["type"], caption["text"], caption["frame"]["source"]) == ("caption", "ein\nBär \x1b[1m😀", "door")
    assert (fired["type"], fired["rule"], fired["active"]) == ("rule", "dog", True)


def test_the_events_are_those_of_the_settings(tmp_path: Path) -> None:
    async def main() -> None:
        bus = Bus()
        async with running(output(bus, tmp_path / "lines", events=("source",))):
            bus.publish(finished(1))
            bus.publish(source_changed("no_signal", "stalled"))

    asyncio.run(main())
    assert [one["cause"] for one in lines(tmp_path / "lines")] == ["stalled"]


def test_a_torn_last_line_is_cut_off_with_a_notice(tmp_path: Path) -> None:
    (tmp_path / "lines").write_bytes(b'{"type":"caption"}\n{"type":"cap')

    async def main() -> None:
        bus = Bus()
        told = notices(bus)
        async with running(output(bus, tmp_path / "lines")):
            bus.publish(finished(1))
        assert [(one.level, "torn" in one.message) for one in told] == [("warning", True)]

    asyncio.run(main())
    assert [one.get("caption") for one in lines(tmp_path / "lines")] == [None, 1]


def test_a_full_disk_costs_the_oldest_events_says_so_once_and_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = [600]
    write = os.write

    def scarce(fd: int, data: memoryview) -> int:
        """A disk with ``room`` bytes left: takes a part, then nothing."""
        if room[0] <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        done = write(fd, data[: room[0]])
        room[0] -= done
        return done

    async def main() -> None:
        bus = Bus()
        told = notices(bus)
        one = output(bus, tmp_path / "lines", sync_s=0)
        other = bus.subscribe("other", 1000, (CaptionFinished,))
        monkeypatch.setattr(lines_file.os, "write", scarce)
        async with running(one):
            for number in range(600):
                bus.publish(finished(number))
                await asyncio.sleep(0)
            await eventually(lambda: one.errors >= 2)
            assert len(lines(tmp_path / "lines")) <= 2
            assert (one.state, other.waiting, len(told)) == ("trouble", 600, 1)
            assert "No space left" in told[0].message
            room[0] = 10**9
            await eventually(lambda: one.state == "working" and one.subscription.waiting == 0)
        assert [notice.level for notice in told] == ["error", "info"]
        assert one.delivered + one.dropped == 600
        assert one.dropped > 200

    asyncio.run(main())
    written = [one["caption"] for one in lines(tmp_path / "lines")]
    assert written == sorted(written)
    assert written[-1] == 599


def test_a_disk_that_hangs_disturbs_nobody_and_does_not_keep_the_daemon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = threading.Event()
    write = os.write

    def hanging(fd: int, data: memoryview) -> int:
        free.wait()
        return write(fd, data)

    async def main() -> None:
        bus = Bus()
        one = output(bus, tmp_path / "lines")
        other = bus.subscribe("other", 1000, (CaptionFinished,))
        async with running(one, close_s=0.05) as task:
            await eventually(lambda: one.state == "working")
            monkeypatch.setattr(lines_file.os, "write", hanging)
            for number in range(700):
                bus.publish(finished(number))
                await asyncio.sleep(0)
            assert (other.waiting, other.dropped) == (700, 0)
            assert one.subscription.waiting <= one.subscription.capacity
        assert task.cancelled()
        assert one.dropped == 700

    asyncio.run(main())
    free.set()


def test_what_was_written_reaches_the_disk_within_the_time_that_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(lines_file.os, "fdatasync", synced.append)

    async def main() -> None:
        bus, clock = Bus(), ManualClock()
        one = output(bus, tmp_path / "lines", clock, sync_s=2)
        task = asyncio.ensure_future(one.run())
        bus.publish(finished(1))
        await eventually(lambda: one.delivered == 1)
        assert synced == []
        await clock.advance(2)
        await eventually(lambda: len(synced) == 1)
        await clock.advance(20)
        assert len(synced) == 1
        closing = asyncio.ensure_future(one.close(5))
        await asyncio.wait({task, closing})

    asyncio.run(main())


def test_a_path_that_cannot_be_opened_is_tried_again(tmp_path: Path) -> None:
    place = tmp_path / "lines"
    place.mkdir()

    async def main() -> None:
        bus = Bus()
        told = notices(bus)
        one = output(bus, place)
        async with running(one):
            await eventually(lambda: one.errors >= 1)
            bus.publish(finished(1))
            place.rmdir()
            await eventually(lambda: one.delivered == 1)
        assert [notice.level for notice in told] == ["error", "info"]

    asyncio.run(main())
    assert len(lines(place)) == 1
