"""Captions one source: the newest frame, the prompt that is due, one caption at a time.

    captioner = Captioner(settings, runner, engine, pictures, bus.publish, clock, itertools.count(1))
    task = asyncio.create_task(captioner.run())

A frame is captioned once; without a signal nothing is. What goes wrong becomes a CaptionFailed, never a caption.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from runtime.captiond.asks import AskResult
from runtime.captiond.captioning.album import Album, HistoryEntry
from runtime.captiond.captioning.answers import DEFAULT_PROMPT, caption, question
from runtime.captiond.captioning.parts import Engine, PicturesView, Runner
from runtime.captiond.captioning.rule_set import RuleSet
from runtime.captiond.captioning.turns import Cadence, Rotation
from runtime.captiond.capture.waiting import end_tasks
from runtime.captiond.clock import NS_PER_S, Clock
from runtime.captiond.config.settings import PromptSettings, SourceSettings
from runtime.captiond.engine.asked import Asked
from runtime.captiond.events import (
    CaptionDelta,
    CaptionFailed,
    CaptionFinished,
    CaptionStarted,
    Event,
    FrameFacts,
    Notice,
)
from runtime.errors import EngineError, SourceError, VlmError

_LOST_S = 0.1
_TICK_S = 1.0  # however long it waits, it looks around this often


@dataclass(slots=True)
class CaptionerStats:
    """Since it was made. ``missed``: due times that passed without a caption; ``unchanged``: scenes that were skipped;
    ``skipped``: frames between the captioned ones that were not looked at."""

    captions: int = 0
    failed: int = 0
    missed: int = 0
    unchanged: int = 0
    skipped: int = 0
    tokens: int = 0


class Captioner:
    """The caption loop of one source. ``numbers`` gives each caption of the daemon its number."""

    def __init__(
        self,
        settings: SourceSettings,
        runner: Runner,
        engine: Engine,
        pictures: PicturesView,
        publish: Callable[[Event], None],
        clock: Clock,
        numbers: Iterator[int],
    ) -> None:
        self.settings = settings
        self.last: CaptionFinished | None = None
        self.live: tuple[int, str] | None = None
        self.prompt_id = ""
        self.paused = settings.paused
        self._runner, self._engine = runner, engine
        self._publish, self._clock, self._numbers = publish, clock, numbers
        self._album = Album(settings.name, pictures, runner.ring, settings.scene_change)
        self._stats = CaptionerStats()
        self._rules = RuleSet(settings.rules, publish)
        self._changed = asyncio.Event()
        self._progress_ns = clock.now_ns()
        self._asked: Asked | None = None
        self._last_seq = -1
        self._seen_seq = -1
        self._unchanged = 0  # frames since the last captioned one
        self._told_engine_is_down = False
        self.set_cadence(settings.captions_per_s)
        self.set_prompts(settings.prompts)

    # ---- what others see and set

    @property
    def stats(self) -> CaptionerStats:
        """Counts so far."""
        self._stats.missed = self._missed_before + self._cadence.missed
        return self._stats

    @property
    def progress_ns(self) -> int:
        """When it last moved: a token, a caption, or a look around while it knows what it waits for."""
        if self._asked is not None and not self._engine.answering:
            return self._clock.now_ns()  # it waits for the engine, which has a supervisor of its own
        return self._progress_ns

    @property
    def prompts(self) -> tuple[PromptSettings, ...]:
        """What is asked, in turn."""
        return self._rotation.prompts

    @property
    def captions_per_s(self) -> float:
        """The cadence; 0: as many as the model can."""
        return self._cadence.per_s

    @property
    def rules(self) -> Mapping[str, bool]:
        """Whether each rule is active."""
        return self._rules.active

    def pause(self) -> None:
        """Caption nothing from now on; what is being written is finished."""
        self.paused = True
        self._changed.set()

    def resume(self) -> None:
        """Go on, from now."""
        if self.paused:
            self.paused = False
            self.set_cadence(self.captions_per_s)

    def set_prompts(self, prompts: Sequence[PromptSettings]) -> None:
        """Ask these in turn from the next caption on; none: the model is asked to describe."""
        self._rotation = Rotation(tuple(prompts) or (DEFAULT_PROMPT,), self._clock.now_ns())
        self._changed.set()

    def set_cadence(self, captions_per_s: float) -> None:
        """Captions per second from now on; 0: as many as the model can."""
        self._missed_before = self._stats.missed
        self._cadence = Cadence(captions_per_s, self._clock.now_ns())
        self._changed.set()

    def follow(self, before: Captioner) -> None:
        """Go on, with new settings, where the captioner of the same frames ended: none of them is captioned again, its
        history stays, and rules that did not change keep their states."""
        self.last, self.prompt_id = before.last, before.prompt_id
        self._last_seq, self._seen_seq, self._unchanged = before._last_seq, before._seen_seq, before._unchanged
        self._stats, self._missed_before = before.stats, before.stats.missed
        self.history.extend(before.history)
        self._rules.follow(before._rules)
        before.end_rules()

    def end_rules(self) -> None:
        """This source is watched no more, or not like this: its active rules become inactive."""
        self._rules.end()

    @property
    def history(self) -> deque[HistoryEntry]:
        """The last captions, oldest first."""
        return self._album.history

    async def jpeg_of(self, number: int) -> bytes | None:
        """The JPEG of a caption's frame, of the running one too: waits until it is made. None when there is none."""
        return await self._album.jpeg_of(number)

    # ---- the loop

    async def run(self) -> None:
        """Caption until cancelled."""
        try:
            while True:
                self._progress_ns = self._clock.now_ns()
                self._changed.clear()
                obstacle = self._obstacle()
                if obstacle is not None:
                    await self._wait(obstacle)
                    continue
                prompt = self._rotation.due(self._clock.now_ns())
                if prompt is not None and not await self._same_scene():
                    await self._caption(prompt)
        finally:
            await self._album.close()

    def _obstacle(self) -> Awaitable[object] | None:
        """What stands between now and the next caption, as something to wait for."""
        if self.paused:
            return self._clock.sleep(_TICK_S)
        if not self._engine.answering:
            self._say_that_it_waits()
            return self._engine.wait_answering()
        self._told_engine_is_down = False
        now_ns = self._clock.now_ns()
        wait_ns = max(self._cadence.wait_ns(now_ns), self._rotation.wait_ns(now_ns))
        if wait_ns > 0:
            return self._clock.sleep(wait_ns / NS_PER_S)
        header = self._runner.newest()
        if header is None or header.seq <= self._seen_seq:
            return self._runner.wait_frame(self._seen_seq)
        return None

    async def _wait(self, obstacle: Awaitable[object]) -> None:
        """Until it is gone, a setting changes, or it is time to look around."""
        tasks = [
            asyncio.ensure_future(obstacle),
            asyncio.ensure_future(self._changed.wait()),
            asyncio.ensure_future(self._clock.sleep(_TICK_S)),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await end_tasks(*tasks)

    def _say_that_it_waits(self) -> None:
        state = self._engine.state
        if not self._told_engine_is_down and state.status in ("restarting", "degraded"):
            self._told_engine_is_down = True
            text = f"captions wait for the engine: {state.message}"
            self._publish(Notice("warning", self.settings.name, text))

    async def _same_scene(self) -> bool:
        """Whether nothing has changed since the last captioned frame; never without a threshold."""
        seq = await self._album.unchanged(self._seen_seq)
        if seq is None:
            return False
        self._seen_seq = seq
        self._stats.unchanged += 1
        self._unchanged += 1
        self._cadence.begun(self._clock.now_ns())
        return True

    # ---- one caption

    async def _caption(self, prompt: PromptSettings) -> None:
        number = next(self._numbers)
        now_ns = self._clock.now_ns()
        self._cadence.begun(now_ns)
        self._rotation.begun(prompt, now_ns)
        rotation = self._rotation  # a caption that fails rests where it came from, also when prompts change meanwhile
        before = self._last_seq
        try:
            paced = self._cadence.per_s > 0 or self._rotation.paced
            self._asked = self._engine.ask(question(self.settings, prompt, self._last_seq, paced=paced))
            await self._write(number, prompt, self._asked)
            rotation.answered(prompt)
        except SourceError:  # its frame is gone: the source was lost in between, and will soon say so itself
            await self._clock.sleep(_LOST_S)
        except VlmError as error:
            self._fail(number, prompt, type(error).__name__, str(error))
            if not isinstance(error, EngineError) or self._engine.answering:
                rotation.failed(prompt, self._clock.now_ns())
            elif self.settings.every_frame:  # the engine died: this frame is not done
                self._seen_seq = self._last_seq = before
        except asyncio.CancelledError:
            if self._asked is not None:
                self._asked.cancel()
            if self.live is not None:
                self._fail(number, prompt, "ClosedError", "captions of this source were stopped")
            raise
        finally:
            self._asked, self.live = None, None

    async def _write(self, number: int, prompt: PromptSettings, asked: Asked) -> None:
        """From the frame to the whole caption, telling each step."""
        frame = await asked.started()
        if frame is None:
            return
        self._progress_ns = self._clock.now_ns()
        self.live, self.prompt_id = (number, ""), prompt.id
        skipped = max(0, frame.seq - self._last_seq - 1 - self._unchanged)
        self._unchanged = 0
        self._seen_seq = self._last_seq = frame.seq
        self._album.begin(number, asked.place)
        self._publish(CaptionStarted(number, frame, prompt.id, prompt.text))
        async for delta in asked:
            self._progress_ns = self._clock.now_ns()
            self.live = (number, self.live[1] + delta.text)
            self._publish(CaptionDelta(number, frame.source, delta.text, delta.index, delta.t_ns))
        result = await asked.result()
        self._finish(number, frame, prompt, result, skipped)

    def _finish(self, number: int, frame: FrameFacts, prompt: PromptSettings, result: AskResult, skipped: int) -> None:
        finished = caption(number, frame, prompt, result, self._engine.model or "", skipped)
        self._stats.captions += 1
        self._stats.tokens += finished.tokens
        self._stats.skipped += skipped
        self.last, self.live = finished, None
        self._album.keep(finished)
        self._publish(finished)
        self._rules.apply(finished)

    def _fail(self, number: int, prompt: PromptSettings, error: str, message: str) -> None:
        self._stats.failed += 1
        self._publish(CaptionFailed(number, self.settings.name, prompt.id, error, message))
