"""The mailbox: the newest frame wins, errors and the end arrive, threads end."""

from __future__ import annotations

import queue
import threading

import numpy as np
import pytest

from runtime.errors import ClosedError, SourceError, VlmError
from runtime.sources import FrameSource, NewestFrames
from runtime.types import Frame

TIMEOUT_S = 20.0


def frame(seq: int) -> Frame:
    return Frame(np.zeros((1, 1, 3), np.uint8), seq, seq)


class Scripted(FrameSource):
    """Plays what the test puts into its queue; says when it asks for more."""

    def __init__(self) -> None:
        super().__init__("scripted", live=True)
        self.script: queue.Queue[object] = queue.Queue()
        self.asked = threading.Semaphore(0)
        self.released = 0

    def _next(self) -> Frame | None:
        self.asked.release()
        while not self._stop.is_set():
            try:
                item = self.script.get(timeout=0.01)
            except queue.Empty:
                continue
            if isinstance(item, Exception):
                raise item
            return item
        return None

    def _release(self) -> None:
        self.released += 1

    def consumed(self, count: int) -> None:
        """Wait until the capture thread has taken `count` items and asks for the one after."""
        for _ in range(count):
            assert self.asked.acquire(timeout=TIMEOUT_S)


def start(inner: Scripted) -> tuple[NewestFrames, list[Frame]]:
    """A mailbox whose thread has started: the first frame was taken."""
    source = NewestFrames(inner)
    inner.script.put(frame(0))
    taken = [next(source)]
    return source, taken


def test_a_busy_reader_gets_the_newest_frame_and_the_others_are_counted() -> None:
    inner = Scripted()
    source, taken = start(inner)
    for seq in range(1, 6):
        inner.script.put(frame(seq))
    inner.consumed(7)  # asks for 0..6: 0 to 5 are in the mailbox
    taken.append(next(source))
    assert [f.seq for f in taken] == [0, 5] and source.dropped == 4
    source.close()


def test_the_last_frame_comes_before_the_end() -> None:
    inner = Scripted()
    source, _ = start(inner)
    inner.script.put(frame(1))
    inner.script.put(None)
    assert [f.seq for f in source] == [1]
    assert next(source, None) is None
    source.close()


def test_an_error_comes_after_the_frame_that_waits_and_only_once() -> None:
    inner = Scripted()
    source, _ = start(inner)
    inner.script.put(frame(1))
    inner.script.put(SourceError("unplugged"))
    assert next(source).seq == 1
    with pytest.raises(SourceError, match="unplugged"):
        next(source)
    assert next(source, None) is None
    source.close()


def test_a_bug_in_a_source_reaches_the_reader_as_a_typed_error() -> None:
    inner = Scripted()
    source, _ = start(inner)
    inner.script.put(RuntimeError("a bug"))
    with pytest.raises(VlmError, match="scripted: the source failed: RuntimeError: a bug") as caught:
        next(source)
    assert isinstance(caught.value.__cause__, RuntimeError)
    source.close()


def test_close_wakes_a_waiting_reader_and_joins_the_thread() -> None:
    inner = Scripted()
    source, _ = start(inner)
    ended: list[object] = []
    reader = threading.Thread(target=lambda: ended.append(next(source, "end")))
    reader.start()
    inner.consumed(2)
    source.close()
    source.close()
    reader.join(TIMEOUT_S)
    assert ended == ["end"] and not source._thread.is_alive() and inner.released == 1


def test_close_in_the_middle_drops_the_frame_that_waits() -> None:
    inner = Scripted()
    source, _ = start(inner)
    inner.script.put(frame(1))
    inner.consumed(3)
    source.close()
    assert next(source, None) is None
    with pytest.raises(ClosedError):
        iter(source)


def test_closed_before_the_first_read_no_thread_is_started() -> None:
    inner = Scripted()
    source = NewestFrames(inner)
    source.close()
    assert next(source, None) is None and source._thread is None and inner.released == 1
