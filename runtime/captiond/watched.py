"""The sources that the daemon watches now: each with its runner, its captioner and the tasks of both."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count

from runtime.captiond.bus import Bus
from runtime.captiond.captioning import Captioner
from runtime.captiond.capture.attempt import CaptureLauncher
from runtime.captiond.capture.supervisor import SourceRunner
from runtime.captiond.clock import Clock
from runtime.captiond.config import SourceSettings, read_secret
from runtime.captiond.engine.client import EngineClient
from runtime.captiond.http.services import SourceView
from runtime.captiond.keeper import Keeper
from runtime.captiond.pictures.client import Pictures

# Settings of the captioner alone: when only these change, frames go on.
_OF_CAPTIONER = ("prompts", "rules", "captions_per_s", "priority", "weight", "paused", "scene_change")


class Sources(Mapping[str, SourceView]):
    """What is watched, by name, in the order of the configuration. `apply` brings it to what a configuration says."""

    def __init__(
        self,
        bus: Bus,
        engine: EngineClient,
        pictures: Pictures,
        launcher: CaptureLauncher,
        keeper: Keeper,
        clock: Clock,
    ) -> None:
        self._bus, self._engine, self._pictures = bus, engine, pictures
        self._launcher, self._keeper, self._clock = launcher, keeper, clock
        self._views: dict[str, SourceView] = {}
        self._captioners: dict[str, Captioner] = {}
        self._runners: dict[str, SourceRunner] = {}
        self._numbers = count(1)  # captions, over all sources
        self._rng = random.Random()

    def __getitem__(self, name: str) -> SourceView:
        return self._views[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._views)

    def __len__(self) -> int:
        return len(self._views)

    def progress(self) -> Iterable[int]:
        """When each caption loop last moved, ns."""
        return [captioner.progress_ns for captioner in self._captioners.values()]

    async def apply(self, wanted: Sequence[SourceSettings]) -> None:
        """Stop what is not wanted any more, begin what is new, and change what differs; the rest is not touched."""
        names = [settings.name for settings in wanted]
        for name in [name for name in self._views if name not in names]:
            await self._drop(name)
        for settings in wanted:
            running = self._views.get(settings.name)
            if running is None:
                self._begin(settings)
            elif _of_runner(running.settings) != _of_runner(settings):
                await self._drop(settings.name)
                self._begin(settings)
            elif running.settings != settings:
                await self._keeper.stop(f"captions of {settings.name}")
                self._begin_captions(settings)
        self._views = {name: self._views[name] for name in names}

    async def close(self) -> None:
        """Stop all of them, at once: a capture that is stuck takes two seconds."""
        await asyncio.gather(*map(self._stop, list(self._views)))

    def _begin(self, settings: SourceSettings) -> None:
        name, file = settings.name, settings.password_file
        runner = SourceRunner(
            settings,
            lambda: None if file is None else read_secret(file),
            self._launcher,
            self._bus.publish,
            self._clock,
            self._rng,
        )
        self._runners[name] = runner
        self._engine.attach_source(name, runner.ring)
        self._pictures.attach(name, runner.ring)
        self._keeper.keep(f"capture of {name}", runner.run)
        self._begin_captions(settings)

    def _begin_captions(self, settings: SourceSettings) -> None:
        runner = self._runners[settings.name]
        captioner = Captioner(
            settings, runner, self._engine, self._pictures, self._bus.publish, self._clock, self._numbers
        )
        before = self._captioners.get(settings.name)
        if before is not None:
            captioner.follow(before)
        self._captioners[settings.name] = captioner
        self._views[settings.name] = SourceView(settings, runner, captioner)
        self._keeper.keep(f"captions of {settings.name}", captioner.run)

    async def _drop(self, name: str) -> None:
        """Stop one while the others go on: nobody is to wait for its rules to become inactive."""
        captioner = self._captioners[name]
        await self._stop(name)
        captioner.end_rules()

    async def _stop(self, name: str) -> None:
        await self._keeper.stop(f"captions of {name}")
        await self._keeper.stop(f"capture of {name}")
        self._engine.detach_source(name)
        self._pictures.detach(name)
        self._runners.pop(name).close()
        del self._captioners[name], self._views[name]


def _of_runner(settings: SourceSettings) -> SourceSettings:
    """The settings without those that only the captioner reads."""
    plain = SourceSettings(name=settings.name, uri=settings.uri)
    return replace(settings, **{name: getattr(plain, name) for name in _OF_CAPTIONER})
