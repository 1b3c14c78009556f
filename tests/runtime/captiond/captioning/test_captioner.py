"""The caption loop, with a scripted engine, scripted frames and a clock that is moved by hand."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

import pytest

from runtime.captiond.asks import Ask, AskDelta, AskResult, NewestFrame
from runtime.captiond.captioning import Captioner
from runtime.captiond.captioning.answers import DEFAULT_PROMPT
from runtime.captiond.capture.ring import FrameHeader, Ring
from runtime.captiond.config.settings import PromptSettings, RuleSettings, SourceSettings
from runtime.captiond.engine.asked import Asked
from runtime.captiond.events import (
    CaptionDelta,
    CaptionFailed,
    CaptionFinished,
    CaptionStarted,
    EngineChanged,
    Event,
    FrameFacts,
    Notice,
    RuleChanged,
)
from runtime.errors import EngineError, PromptError, SourceError, VlmError
from tests.runtime.captiond.clocks import ManualClock, settle

PERSON = PromptSettings(id="person", text="Is there a person?", kind="yes_no")
COUNT = PromptSettings(id="count", text="How many?", kind="json", schema={"type": "object"}, max_new_tokens=20)


class Frames:
    """A source: `show` brings the next frame, now."""

    def __init__(self, clock: ManualClock) -> None:
        self.ring = Ring.create(3 * 8 * 6)
        self.live = True
        self.seq = -1
        self._clock = clock
        self._new = asyncio.Event()

    def show(self, count: int = 1) -> None:
        for _ in range(count):
            self.seq += 1
            assert self.ring.write(bytes(144), 8, 6, self.seq, self._clock.now_ns(), "exposure")
        self._new.set()
        self._new = asyncio.Event()

    def newest(self) -> FrameHeader | None:
        return self.ring.newest() if self.live else None

    async def wait_frame(self, after_seq: int = -1) -> FrameHeader:
        while (header := self.newest()) is None or header.seq <= after_seq:
            await self._new.wait()
        return header


class ScriptedEngine:
    """Takes the newest frame, writes ``text`` word by word, ``token_s`` each; ``error`` comes instead of an answer."""

    def __init__(self, frames: Frames, clock: ManualClock) -> None:
        self.state = EngineChanged("ready", "loaded", "", 0, 0.1)
        self.model: str | None = "scripted"
        self.text = "a cat"
        self.token_s = 0.1
        self.error: VlmError | None = None
        self.asks: list[Ask] = []
        self.up = asyncio.Event()
        self.up.set()
        self._frames, self._clock = frames, clock
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def answering(self) -> bool:
        return self.up.is_set()

    async def wait_answering(self) -> None:
        await self.up.wait()

    def ask(self, ask: Ask) -> Asked:
        self.asks.append(ask)
        asked = Asked(len(self.asks), ask, 0, lambda asked: None)
        task = asyncio.create_task(self._answer(asked))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return asked

    async def _answer(self, asked: Asked) -> None:
        (picture,) = asked.ask.pictures
        assert isinstance(picture, NewestFrame)
        pinned = self._frames.ring.take(1, picture.after_seq)
        if pinned is None:
            asked.fail(SourceError("no newer frame"))
            return
        if isinstance(self.error, PromptError):
            pinned.release()
            asked.fail(self.error)
            return
        header = pinned.header
        frame = FrameFacts("door", header.seq, header.t_capture_ns, 0.0, header.kind, header.width, header.height)
        asked.begin(frame, (pinned.slot, pinned.generation))
        times, text = [], self.text
        for index, word in enumerate(text.split(" ")):
            await self._clock.sleep(self.token_s)
            if asked.cancelled:
                break
            if self.error is not None:
                asked.fail(self.error)
                break
            times.append(self._clock.now_ns())
            asked.put(AskDelta((" " if index else "") + word, index, -0.1, index, times[-1]))
        pinned.release()
        reason: Any = "cancelled" if asked.cancelled else "stop"
        timings = {"ttft_ms": self.token_s * 1e3, "decode_tokens_per_s": 1 / self.token_s}
        first, last, said = (times[0], times[-1], text) if times else (None, None, "")
        asked.finish(AskResult(said, reason, 9, len(times), 4, 0, first, last, timings, frame))


class Picture:
    def __init__(self, data: bytes) -> None:
        self.data = data


class Album:
    """Pictures that say which place they show; scenes change as told."""

    def __init__(self) -> None:
        self.change = 1.0
        self.kept: list[tuple[int, int]] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def jpeg(
        self, source: str, *, slot: tuple[int, int] | None = None, max_side_px: int, quality: int = 80
    ) -> Picture | None:
        await self.gate.wait()
        return Picture(f"{source} {slot} {max_side_px}".encode())

    async def changed(self, source: str, slot: tuple[int, int]) -> float:
        return self.change if self.kept else 1.0

    async def keep_scene(self, source: str, slot: tuple[int, int]) -> bool:
        self.kept.append(slot)
        return True


class World:
    """A captioner and everything around it."""

    def __init__(self, **settings: Any) -> None:
        self.clock = ManualClock()
        self.frames = Frames(self.clock)
        self.engine = ScriptedEngine(self.frames, self.clock)
        self.album = Album()
        self.events: list[Event] = []
        self.start_ns = self.clock.now_ns()
        source = SourceSettings(name="door", uri="synthetic://", **settings)
        self.captioner = Captioner(
            source, self.frames, self.engine, self.album, self.events.append, self.clock, itertools.count(1)
        )

    def of(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def seqs(self) -> list[int]:
        return [event.frame.seq for event in self.of(CaptionFinished)]

    @property
    def prompts(self) -> list[str]:
        return [event.prompt_id for event in self.of(CaptionStarted)]

    async def film(self, seconds: float, fps: float = 10) -> None:
        """Frames come while time passes."""
        for _ in range(round(seconds * fps)):
            self.frames.show()
            await self.clock.advance(1 / fps)


@asynccontextmanager
async def running(world: World) -> AsyncIterator[Captioner]:
    task = asyncio.create_task(world.captioner.run())
    await settle()
    try:
        yield world.captioner
        assert not task.done(), task.exception()
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        world.frames.ring.close()


def play(story: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await story()

    asyncio.run(main())


def test_caption_carries_its_frame_its_ages_and_its_prompt() -> None:
    async def story() -> None:
        world = World(priority=7, weight=2.0, captions_per_s=1)
        async with running(world) as captioner:
            world.frames.show(3)
            captured = world.clock.now_ns()
            await world.clock.advance(0.05)
            await world.clock.advance(0.1)
            assert captioner.live == (1, "a")
            await world.clock.advance(0.1)
            started, first, second, finished = world.events
            assert isinstance(started, CaptionStarted) and isinstance(finished, CaptionFinished)
            assert isinstance(first, CaptionDelta) and isinstance(second, CaptionDelta)
            assert started.frame == finished.frame and started.frame.seq == 2
            assert (started.caption, started.prompt, started.prompt_id) == (1, "Describe the image.", "describe")
            assert (first.text, second.text, first.index, second.index) == ("a", " cat", 0, 1)
            assert finished.text == "a cat" and finished.model == "scripted" and finished.fields is None
            assert (finished.tokens, finished.finish_reason, finished.skipped) == (2, "stop", 2)
            assert finished.age_first_ms == pytest.approx((first.t_ns - captured) / 1e6) == pytest.approx(100)
            assert finished.age_last_ms == pytest.approx(200)
            assert (finished.ttft_ms, finished.tokens_per_s) == (100, 10)
            assert captioner.last == finished and captioner.live is None and captioner.prompt_id == "describe"
            ask = world.engine.asks[0]
            assert (ask.kind, ask.priority, ask.weight, ask.constraint) == ("caption", 7, 2.0, None)
            assert ask.messages[0].parts == (0, DEFAULT_PROMPT.text)
            assert captioner.stats.captions == 1 and captioner.stats.tokens == 2

    play(story)


def test_captions_at_full_speed_leave_the_chats_their_share() -> None:
    async def story() -> None:
        world = World(priority=7)
        async with running(world) as captioner:
            world.frames.show()
            await world.clock.advance(0.5)
            captioner.set_cadence(4)
            await world.film(0.5)
            captioner.set_cadence(0)
            captioner.set_prompts([PromptSettings(id="rare", text="?", every_s=0.2)])
            await world.film(0.5)
            captioner.set_prompts([PromptSettings(id="rare", text="?", every_s=0.2), PERSON])
            await world.film(0.5)
            priorities = [ask.priority for ask in world.engine.asks]
            assert priorities[0] == priorities[-1] == 0 and 7 in priorities
            rare = [ask.priority for ask in world.engine.asks if ask.messages[0].parts[1] == "?"]
            assert rare[0] == 7

    play(story)


def test_no_frame_is_captioned_twice_and_the_newest_one_is_taken() -> None:
    async def story() -> None:
        world = World()
        async with running(world):
            await world.film(3, fps=10)
            assert world.seqs == sorted(set(world.seqs))
            assert world.seqs[:4] == [0, 1, 3, 5]  # 1 was the newest when the first caption ended
            count = len(world.of(CaptionStarted))
            await world.clock.advance(60)  # the same frame is still the newest
            assert len(world.of(CaptionStarted)) - count <= 1
            assert world.of(CaptionFailed) == []
            assert sum(event.skipped for event in world.of(CaptionFinished)) == world.captioner.stats.skipped
            assert world.captioner.stats.skipped + len(world.seqs) == world.seqs[-1] + 1

    play(story)


def test_nothing_is_captioned_without_a_signal_and_the_loop_says_that_it_lives() -> None:
    async def story() -> None:
        world = World()
        world.frames.live = False
        world.frames.show()
        async with running(world) as captioner:
            for _ in range(10):
                await world.clock.advance(6)
                assert world.clock.now_ns() - captioner.progress_ns <= 1.5e9
            assert world.events == [] and world.engine.asks == []

    play(story)


def test_cadence_keeps_its_distance_and_does_not_drift_or_pile_up() -> None:
    async def story() -> None:
        world = World(captions_per_s=2)
        async with running(world) as captioner:
            await world.film(10, fps=50)
            starts = [(event.frame.t_capture_ns - world.start_ns) / 1e9 for event in world.of(CaptionStarted)]
            assert len(starts) == 21
            for number, start in enumerate(starts):
                assert number * 0.5 - 0.021 <= start <= number * 0.5 + 0.021
            assert captioner.stats.missed == 0
            world.engine.token_s = 0.6  # 1.2 s a caption
            await world.film(6, fps=50)
            assert 5 <= len(world.of(CaptionStarted)) - 21 <= 6
            assert captioner.stats.missed >= 5
            world.engine.token_s = 0.01
            count = len(world.of(CaptionStarted))
            await world.film(5, fps=50)
            assert 8 <= len(world.of(CaptionStarted)) - count <= 12  # nothing is made up for
            captioner.set_cadence(10)
            assert captioner.captions_per_s == 10
            count = len(world.of(CaptionStarted))
            await world.film(2, fps=50)
            assert 19 <= len(world.of(CaptionStarted)) - count <= 21

    play(story)


def test_prompts_take_turns_and_those_with_a_cadence_of_their_own_come_when_due() -> None:
    async def story() -> None:
        rare = PromptSettings(id="rare", text="?", every_s=2)
        one, two = PromptSettings(id="one", text="1"), PromptSettings(id="two", text="2", system="Be brief.", seed=4)
        world = World(prompts=(rare, one, two))
        async with running(world) as captioner:
            await world.film(2, fps=10)
            assert world.prompts[:5] == ["rare", "one", "two", "one", "two"]
            assert [part.role for part in world.engine.asks[2].messages] == ["system", "user"]
            assert world.engine.asks[2].params == {"max_new_tokens": 96, "temperature": 0.0, "seed": 4}
            await world.film(8, fps=10)
            assert 4 <= world.prompts.count("rare") <= 5
            assert abs(world.prompts.count("one") - world.prompts.count("two")) <= 1
            captioner.set_prompts((PERSON,))
            assert captioner.prompts == (PERSON,)
            count = len(world.prompts)
            await world.film(1, fps=10)
            assert set(world.prompts[count + 1 :]) == {"person"}
            captioner.set_prompts(())
            assert captioner.prompts == (DEFAULT_PROMPT,)

    play(story)


def test_prompts_with_cadences_alone_leave_the_engine_idle_in_between() -> None:
    async def story() -> None:
        world = World(prompts=(PromptSettings(id="rare", text="?", every_s=5),))
        async with running(world):
            await world.film(21, fps=10)
            assert len(world.prompts) == 5

    play(story)


def test_structured_answers_have_fields_and_a_constraint() -> None:
    async def story() -> None:
        world = World(prompts=(PERSON, COUNT))
        async with running(world):
            world.engine.text = "yes"
            await world.film(0.1)
            spec = world.engine.asks[0].constraint
            assert spec is not None and (spec.kind, spec.choices) == ("choice", ("yes", "no"))
            world.engine.text = '{"cats": 2}'
            await world.film(0.3)
            spec = world.engine.asks[1].constraint
            assert spec is not None and (spec.kind, spec.schema) == ("json_schema", {"type": "object"})
            assert [event.fields for event in world.of(CaptionFinished)][:2] == [{"answer": "yes"}, {"cats": 2}]
            world.engine.text = '{"cats":'  # cut off
            await world.film(0.5)
            assert world.of(CaptionFinished)[-1].fields is None

    play(story)


def test_rules_follow_the_fields_of_their_prompt() -> None:
    async def story() -> None:
        rules = (
            RuleSettings(name="somebody", prompt="person", value="yes"),
            RuleSettings(name="other", prompt="count", value="yes"),
            RuleSettings(name="crowd", prompt="count", field="people.number", op=">", value=3),
        )
        world = World(prompts=(PERSON,), rules=rules)
        async with running(world) as captioner:
            assert captioner.rules == {"somebody": False, "other": False, "crowd": False}
            for text in ("no", "yes", "yes", "no"):
                world.engine.text = text
                await world.film(0.2)
            changes = world.of(RuleChanged)
            assert [(change.rule, change.active, change.value) for change in changes] == [
                ("somebody", True, "yes"),
                ("somebody", False, "no"),
            ]
            yes = next(event for event in world.of(CaptionFinished) if event.text == "yes")
            assert (changes[0].caption, changes[0].frame) == (yes.caption, yes.frame)
            captioner.set_prompts((COUNT,))
            world.engine.text = '{"people":{"number":4}}'
            await world.film(0.4)
            assert world.of(RuleChanged)[-1].rule == "crowd" and world.of(RuleChanged)[-1].value == 4
            assert captioner.rules == {"somebody": False, "other": False, "crowd": True}

    play(story)


def test_new_settings_do_not_begin_a_source_again() -> None:
    """Only what changed is new: no frame is captioned twice, the history stays, and so do rules that are the same."""

    async def story() -> None:
        same = RuleSettings(name="same", prompt="person", value="yes")
        rules = (same, RuleSettings(name="other", prompt="person", value="yes", on_after_s=0.1))
        world = World(prompts=(PERSON,), rules=rules)
        world.engine.text = "yes"
        async with running(world) as before:
            await world.film(1)
            assert before.rules == {"same": True, "other": True}
            told, seqs, stats = len(world.of(RuleChanged)), world.seqs, before.stats.captions
            rules = (same, replace(rules[1], cooldown_s=9))
            settings = replace(before.settings, weight=2.0, rules=rules)
        world.frames.ring = Ring.create(3 * 8 * 6)
        after = Captioner(
            settings, world.frames, world.engine, world.album, world.events.append, world.clock, itertools.count(99)
        )
        after.follow(before)
        assert after.rules == {"same": True, "other": False}
        assert [(change.rule, change.active) for change in world.of(RuleChanged)[told:]] == [("other", False)]
        assert [entry.finished.frame.seq for entry in after.history] == seqs
        assert after.last == before.last and after.stats.captions == stats
        world.frames.seq -= 1
        world.frames.show()  # the frame that was captioned last is still the newest
        world.captioner = after
        async with running(world):
            await world.clock.advance(1)
            assert world.seqs == seqs
            await world.film(0.5)
            assert world.seqs[len(seqs) :] and min(world.seqs[len(seqs) :]) > seqs[-1]
            assert len(world.of(RuleChanged)) == told + 2  # "other", anew

    play(story)


def test_errors_never_become_captions_and_a_failing_prompt_rests_longer_each_time() -> None:
    async def story() -> None:
        world = World()
        world.engine.error = PromptError("the prompt has 9000 tokens", hint="shorten it")
        async with running(world):
            await world.film(10)
            failed = world.of(CaptionFailed)
            assert 4 <= len(failed) <= 6  # at 0, 0.5, 1.5, 3.5, 7.5 s
            assert failed[0] == CaptionFailed(1, "door", "describe", "PromptError", str(world.engine.error))
            assert world.of(CaptionFinished) == world.of(CaptionStarted) == []
            world.engine.error = None
            await world.film(10)
            assert world.of(CaptionFinished)
            assert world.captioner.stats.failed == len(failed)

    play(story)


def test_source_that_is_lost_in_between_is_no_failed_caption() -> None:
    async def story() -> None:
        world = World()
        async with running(world):
            world.frames.newest = lambda: FrameHeader(5, 0, "arrival", 8, 6)  # type: ignore[method-assign]
            await world.clock.advance(1)
            asked = len(world.engine.asks)
            assert asked > 0
            await settle(500)
            assert len(world.engine.asks) == asked  # not as often as it can
            await world.clock.advance(0.15)
            assert len(world.engine.asks) > asked
            assert world.events == []

    play(story)


def test_engine_that_is_down_is_waited_for_and_said_once() -> None:
    async def story() -> None:
        world = World()
        async with running(world) as captioner:
            await world.film(0.5)
            world.engine.up.clear()
            world.engine.state = EngineChanged("restarting", "SIGSEGV", "the engine was ended by SIGSEGV", 1, 0.1)
            world.engine.error = EngineError("the engine was ended by SIGSEGV")
            await world.film(5)
            assert [event.error for event in world.of(CaptionFailed)] == ["EngineError"]
            (notice,) = world.of(Notice)
            assert notice.about == "door" and "SIGSEGV" in notice.message
            assert world.clock.now_ns() - captioner.progress_ns <= 1.5e9
            world.engine.error = None
            world.engine.up.set()
            count = len(world.seqs)
            await world.film(1)
            assert len(world.seqs) >= count + 4
            assert len(world.of(Notice)) == 1

    play(story)


def test_every_frame_is_captioned_in_order_also_over_the_death_of_an_engine() -> None:
    async def story() -> None:
        world = World(every_frame=True)
        async with running(world):
            for _ in range(3):
                world.frames.show()
                await world.clock.advance(0.25)
            world.engine.error = EngineError("dead")
            world.engine.up.clear()
            world.engine.up.set()
            world.frames.show()
            await settle()
            world.engine.up.clear()
            await world.clock.advance(1)
            world.engine.error = None
            world.engine.up.set()
            await world.clock.advance(1)
            assert world.seqs == [0, 1, 2, 3]
            assert len(world.of(CaptionFailed)) == 1

    play(story)


def test_pause_finishes_the_caption_and_resume_goes_on_with_a_new_frame() -> None:
    async def story() -> None:
        world = World(paused=True)
        async with running(world) as captioner:
            await world.film(2)
            assert captioner.paused and world.events == []
            captioner.resume()
            await world.film(0.1)
            captioner.pause()
            await world.film(5)
            assert len(world.of(CaptionFinished)) == 1
            assert world.clock.now_ns() - captioner.progress_ns <= 1.5e9
            captioner.resume()
            captioner.resume()
            await world.film(1)
            assert world.seqs[1] > 60
            assert not captioner.paused

    play(story)


def test_scenes_that_did_not_change_enough_are_skipped() -> None:
    async def story() -> None:
        world = World(scene_change=0.1)
        async with running(world) as captioner:
            await world.film(0.3)
            world.album.change = 0.05
            await world.film(3)
            count = len(world.seqs)
            assert count <= 2
            assert captioner.stats.unchanged >= 25
            world.album.change = 0.5
            await world.film(1)
            assert len(world.seqs) >= count + 4
            assert len(world.album.kept) == len(world.of(CaptionStarted))
            # Each frame is either captioned, or was looked at, or was passed over.
            stats, last = captioner.stats, world.of(CaptionFinished)[-1].frame.seq
            assert stats.captions + stats.unchanged + stats.skipped == last + 1

    play(story)


def test_thumbnails_show_the_captioned_frame_and_the_history_is_bounded() -> None:
    async def story() -> None:
        world = World()
        world.engine.text, world.engine.token_s = "cat", 0.01
        async with running(world) as captioner:
            world.album.gate.clear()
            world.frames.show()
            await world.clock.advance(0.005)
            wanted = asyncio.create_task(captioner.jpeg_of(1))
            await world.clock.advance(0.1)
            assert captioner.history[0].jpeg is None and not wanted.done()
            world.album.gate.set()
            await settle()
            assert captioner.history[0].jpeg == b"door (0, 2) 640" == await wanted
            assert await captioner.jpeg_of(99) is None
            await world.film(7)
            assert len(captioner.history) == 60
            assert captioner.history[-1].finished == captioner.last
            assert await captioner.jpeg_of(captioner.history[0].finished.caption) == captioner.history[0].jpeg
            assert None not in [entry.jpeg for entry in captioner.history]

    play(story)


def test_progress_is_that_of_the_tokens() -> None:
    async def story() -> None:
        world = World()
        world.engine.token_s = 30
        async with running(world) as captioner:
            world.frames.show()
            await world.clock.advance(25)
            assert world.clock.now_ns() - captioner.progress_ns > 20e9  # a hang looks like this
            await world.clock.advance(6)
            assert world.clock.now_ns() - captioner.progress_ns < 2e9
            await world.clock.advance(25)
            world.engine.up.clear()  # the engine's own supervisor knows now
            assert captioner.progress_ns == world.clock.now_ns()

    play(story)


def test_stopping_amid_a_caption_ends_it_and_says_so() -> None:
    async def story() -> None:
        world = World()
        async with running(world):
            world.frames.show()
            await world.clock.advance(0.15)
            asked = world.captioner._asked
        assert asked is not None and asked.cancelled
        assert [event.type for event in world.events] == ["caption_started", "caption_delta", "caption_failed"]
        assert world.captioner.live is None

    play(story)
