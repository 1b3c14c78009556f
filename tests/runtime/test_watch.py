"""Captions of a source: the newest frame, its age, what was skipped, and the ends of everything."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runtime.errors import ClosedError, EngineError, SourceError
from runtime.types import Frame
from tests.runtime.fakes import Rig, rig_of, saying  # noqa: F401 - a fixture

RigOf = Callable[..., Rig]


class ScriptedSource:
    """Gives the frames of these numbers; an exception among them is raised in its place."""

    def __init__(self, *items: int | Exception, live: bool = False) -> None:
        self.items = list(items)
        self.live = live
        self.name = "scripted"
        self.closed = 0
        self.given = threading.Semaphore(0)

    def __iter__(self) -> Iterator[Frame]:
        return self

    def __next__(self) -> Frame:
        if not self.items or self.closed:
            raise StopIteration
        item = self.items.pop(0)
        if isinstance(item, Exception):
            raise item
        self.given.release()
        return Frame(np.full((8, 8, 3), item, np.uint8), time.monotonic_ns(), item, "exposure", self.name)

    def __enter__(self) -> ScriptedSource:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.closed += 1


def test_each_caption_belongs_to_its_frame_and_skipped_frames_are_counted(rig_of: RigOf) -> None:
    rig = rig_of(saying("abc"))
    source = ScriptedSource(0, 1, 5, 6, 9)
    watch = rig.session.watch(source, "What?")
    seen = [(caption.seq, caption.skipped, caption.text) for caption in watch]
    assert seen == [(0, 0, "abc"), (1, 0, "abc"), (5, 3, "abc"), (6, 0, "abc"), (9, 2, "abc")]
    assert (watch.frames_seen, watch.frames_skipped) == (10, 5)
    assert source.closed


def test_caption_is_iterated_for_its_deltas_and_knows_its_ages(rig_of: RigOf) -> None:
    rig = rig_of(saying("abc"))
    rig.decoder.gate = threading.Semaphore(0)
    with rig.session.watch(ScriptedSource(7), "What?") as watch:
        caption = next(watch)
        deltas = iter(caption)
        first = next(deltas)
        age = caption.age_first_ms
        assert age == (first.t_ns - caption.t_capture_ns) / 1e6
        assert not caption.done
        rig.decoder.gate.release(10)
        rest = list(deltas)
        assert [delta.text for delta in [first, *rest]] == ["a", "b", "c"]
        assert (caption.t_capture_kind, caption.source) == ("exposure", "scripted")
        assert caption.age_first_ms == age
        assert caption.age_last_ms == (rest[-1].t_ns - caption.t_capture_ns) / 1e6
        assert caption.answer().text == caption.text == "abc"


def test_ages_are_unknown_before_the_first_token(rig_of: RigOf) -> None:
    rig = rig_of(saying("abc"))
    entered, go = threading.Event(), threading.Event()
    encode = rig.vision.encode

    def held(tiles: np.ndarray, layout: object) -> np.ndarray:
        entered.set()
        go.wait(10)
        return encode(tiles, layout)

    rig.vision.encode = held
    caption = next(rig.session.watch(ScriptedSource(0), "What?"))
    assert entered.wait(10)
    assert (caption.age_first_ms, caption.age_last_ms) == (None, None)
    go.set()
    assert caption.text == "abc"
    assert caption.age_first_ms is not None


def test_newest_frame_wins_while_the_model_is_busy(rig_of: RigOf) -> None:
    rig = rig_of(saying("abc"))
    rig.decoder.gate = threading.Semaphore(0)
    source = ScriptedSource(*range(6), live=True)
    watch = rig.session.watch(source, "What?")
    first = next(watch)
    for _ in range(6):
        assert source.given.acquire(timeout=10)
    rig.decoder.gate.release(1000)
    captions = [first, *watch]
    assert captions[-1].seq == 5
    assert len(captions) <= 3  # the first one, perhaps one that came before the source was through, and the newest
    assert sum(caption.skipped for caption in captions) + len(captions) == 6


def test_every_frame_of_a_live_source_waits_for_its_turn(rig_of: RigOf) -> None:
    rig = rig_of(saying("abc"))
    source = ScriptedSource(*range(6), live=True)
    assert [caption.seq for caption in rig.session.watch(source, "What?", every_frame=True)] == list(range(6))


def test_next_waits_for_the_caption_before_it(rig_of: RigOf) -> None:
    rig = rig_of(saying("abc"))
    watch = rig.session.watch(ScriptedSource(0, 1), "What?")
    first = next(watch)
    next(watch)
    assert first.done


def test_closing_the_watch_cancels_the_caption_and_closes_the_source(rig_of: RigOf) -> None:
    rig = rig_of(saying("x", stop=False))
    rig.decoder.gate = threading.Semaphore(1)
    source = ScriptedSource(*range(1000))
    watch = rig.session.watch(source, "What?")
    caption = next(watch)
    next(iter(caption))
    watch.close()
    rig.decoder.gate.release(1000)
    assert caption.answer().finish_reason == "cancelled"
    assert source.closed
    assert list(watch) == []
    watch.close()


def test_forgotten_watch_closes_its_source(rig_of: RigOf) -> None:
    source = ScriptedSource(*range(1000), live=True)
    watch = rig_of().session.watch(source, "What?")
    next(watch).answer()
    del watch
    gc.collect()
    assert source.closed


def test_error_of_the_source_comes_after_the_frames_before_it(rig_of: RigOf) -> None:
    rig = rig_of(saying("abc"))
    watch = rig.session.watch(ScriptedSource(0, 1, SourceError("the film breaks off", hint="copy it again")), "What?")
    assert [next(watch).text, next(watch).text] == ["abc", "abc"]
    with pytest.raises(SourceError, match="breaks off"):
        next(watch)
    assert list(watch) == []
    assert rig.session.generate("Still there?").text == "abc"


def test_error_of_a_caption_nobody_read_is_raised_once_and_the_watch_goes_on(rig_of: RigOf) -> None:
    rig = rig_of(saying("abc"))
    watch = rig.session.watch(ScriptedSource(0, 1, 2, 3), "What?")
    rig.vision.fail_next = EngineError("device lost")
    next(watch)
    with pytest.raises(EngineError, match="device lost"):
        next(watch)
    second = next(watch)
    assert (second.seq, second.text) == (1, "abc")
    rig.vision.fail_next = EngineError("again")
    failed = next(watch)
    with pytest.raises(EngineError, match="again"):
        failed.answer()
    assert next(watch).seq == 3  # that one was read: it is not raised again


def test_watch_is_an_asynchronous_iterator_too(rig_of: RigOf) -> None:
    rig = rig_of(saying("abc"))

    async def read() -> list[str]:
        texts = []
        async for caption in rig.session.watch(ScriptedSource(0, 1, 2), "What?"):
            texts.append("".join([delta.text async for delta in caption]))
            assert (await caption.answer_async()).text == "abc"
        return texts

    assert asyncio.run(read()) == ["abc"] * 3


def test_source_is_opened_by_its_uri(rig_of: RigOf, tmp_path: Path) -> None:
    rig = rig_of(saying("abc"))
    for index in range(3):
        Image.fromarray(np.full((8, 8, 3), 50 * index, np.uint8)).save(tmp_path / f"{index}.png")
    assert [caption.seq for caption in rig.session.watch(f"{tmp_path}/*.png", "What?")] == [0, 1, 2]
    films = rig.session.watch("synthetic://?frames=3&width=64&height=64", "What?", every_frame=True)
    assert [caption.seq for caption in films] == [0, 1, 2]
    with pytest.raises(SourceError, match="no such file"):
        rig.session.watch(tmp_path / "nothing.mp4", "What?")


def test_watch_of_a_session_that_is_closed_meanwhile_says_so(rig_of: RigOf) -> None:
    rig = rig_of(saying("abc"))
    watch = rig.session.watch(ScriptedSource(0, 1), "What?")
    next(watch).answer()
    rig.session.close()
    with pytest.raises(ClosedError):
        next(watch)


def test_max_new_tokens_reaches_the_captions(rig_of: RigOf) -> None:
    watch = rig_of(saying("abc")).session.watch(ScriptedSource(0), "What?", max_new_tokens=2)
    assert next(watch).answer().text == "ab"
