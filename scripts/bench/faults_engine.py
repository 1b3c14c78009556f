#!/usr/bin/env python3
"""Engine faults against real processes in real time: whether captions come back, and how long that takes.

    python scripts/bench/faults_engine.py [--seeds 10] [--kinds kill,stop] [--out results.jsonl]

A source of 30 frames per second is captioned by the demo model in its own process, a chat goes on beside it, and at a
moment that the seed draws something happens to the engine. ``noticed_s``: until the daemon says so (a state, or the
typed error of the question at fault). ``back_s``: until the first token of a caption of a frame that was captured
after the fault, less the time that the engine took to load again. Kinds that a sound engine does not have (a bug, NaN)
are done by the stand-in of the tests, in a process of its own too.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import random
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from runtime.captiond.asks import Ask, AskMessage  # noqa: E402
from runtime.captiond.captioning import Captioner  # noqa: E402
from runtime.captiond.capture.ring import FrameHeader, Ring  # noqa: E402
from runtime.captiond.clock import Clock  # noqa: E402
from runtime.captiond.config.settings import EngineSettings, SourceSettings  # noqa: E402
from runtime.captiond.engine.client import EngineClient  # noqa: E402
from runtime.captiond.events import CaptionDelta, CaptionStarted, EngineChanged, Event  # noqa: E402
from runtime.errors import VlmError  # noqa: E402
from runtime.sources import open_source  # noqa: E402
from scripts.bench.record import environment, write_line  # noqa: E402
from tests.runtime.captiond.stand_in_engine import stand_in_command  # noqa: E402

BUNDLE = ROOT / "runtime" / "demo" / "demo-llava"
FPS = 30
HANG_S = 3.0
PATIENCE_S = 60.0


class Film:
    """The demo video over and over at 30 frames per second: a source without a capture."""

    def __init__(self) -> None:
        with open_source(ROOT / "runtime" / "demo" / "demo.avi", every_frame=True) as source:
            self._frames = [(frame.rgb.tobytes(), *frame.rgb.shape[:2]) for frame in itertools.islice(source, 60)]
        self.ring = Ring.create(max(len(data) for data, _, _ in self._frames))
        self._new = asyncio.Event()

    async def run(self) -> None:
        for seq in itertools.count():
            data, height, width = self._frames[seq % len(self._frames)]
            self.ring.write(data, width, height, seq, time.monotonic_ns(), "arrival")
            self._new.set()
            self._new = asyncio.Event()
            await asyncio.sleep(1 / FPS)

    def newest(self) -> FrameHeader | None:
        return self.ring.newest()

    async def wait_frame(self, after_seq: int = -1) -> FrameHeader:
        while (header := self.newest()) is None or header.seq <= after_seq:
            await self._new.wait()
        return header


class NoPictures:
    """Nobody looks."""

    async def jpeg(self, source: str, **_: object) -> None:
        return None

    async def changed(self, source: str, slot: tuple[int, int]) -> float:
        return 1.0

    async def keep_scene(self, source: str, slot: tuple[int, int]) -> bool:
        return True


class World:
    """An engine, a source, its captions, and when each event came."""

    def __init__(self, command: Sequence[str] | None) -> None:
        self.events: list[tuple[float, Event]] = []
        self._captured: dict[int, float] = {}
        settings = EngineSettings(bundle=str(BUNDLE), chats=2, hang_s=HANG_S, deadline_s=10)
        given = {} if command is None else {"command": command}
        self.engine = EngineClient(settings, 1, self._publish, Clock(), **given)
        self.film = Film()
        source = SourceSettings(name="film", uri="synthetic://", captions_per_s=10)
        self.captioner = Captioner(
            source, self.film, self.engine, NoPictures(), self._publish, Clock(), itertools.count(1)
        )

    def _publish(self, event: Event) -> None:
        self.events.append((time.monotonic(), event))
        if isinstance(event, CaptionStarted):
            self._captured[event.caption] = event.frame.t_capture_ns / 1e9

    def chat(self, text: str = "Describe the image.", **params: Any) -> Any:
        params = {"max_new_tokens": 20, **params}
        return self.engine.ask(Ask("chat", (AskMessage("user", (text,)),), params=params))

    async def captioned_after(self, moment: float) -> float:
        """When the first token of a caption of a frame captured after ``moment`` came."""
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            for t, event in self.events:
                if isinstance(event, CaptionDelta) and self._captured[event.caption] > moment:
                    return t
            await asyncio.sleep(0.005)
        raise TimeoutError("no caption came back")

    async def said_after(self, moment: float, statuses: Sequence[str]) -> float:
        """When a state of the engine was published."""
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            for t, event in self.events:
                if t > moment and isinstance(event, EngineChanged) and event.status in statuses:
                    return t
            await asyncio.sleep(0.005)
        raise TimeoutError("nothing was said")


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one injection, in seconds. ``load_s``: what loading the engine again took, 0 when it was not."""

    noticed_s: float
    back_s: float
    load_s: float


@asynccontextmanager
async def world(command: Sequence[str] | None = None) -> AsyncIterator[World]:
    """A world in which captions are coming."""
    made = World(command)
    made.engine.attach_source("film", made.film.ring)
    tasks = [asyncio.create_task(run()) for run in (made.engine.run, made.film.run, made.captioner.run)]
    try:
        await made.captioned_after(0.0)
        yield made
    finally:
        for task in reversed(tasks):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        made.engine.detach_source("film")
        made.film.ring.close()


async def _signalled(number: signal.Signals, rng: random.Random) -> Outcome:
    async with world() as made:
        asked = made.chat(max_new_tokens=200, temperature=1.5, seed=rng.randrange(1000))
        await asyncio.sleep(rng.uniform(0.0, 0.5))
        moment, pid = time.monotonic(), made.engine.pid
        assert pid is not None
        os.kill(pid, number)
        noticed = await made.said_after(moment, ["restarting", "degraded"])
        back = await made.captioned_after(moment)
        with suppress(VlmError):
            await asked.result()
        await made.chat().result()
        load_s = made.engine.state.load_s or 0.0
        return Outcome(noticed - moment, back - noticed - load_s, load_s)


async def killed(rng: random.Random) -> Outcome:
    """SIGKILL, as when memory ends."""
    return await _signalled(signal.SIGKILL, rng)


async def crashed(rng: random.Random) -> Outcome:
    """SIGSEGV."""
    return await _signalled(signal.SIGSEGV, rng)


async def stopped(rng: random.Random) -> Outcome:
    """SIGSTOP: silence, noticed after hang_s."""
    return await _signalled(signal.SIGSTOP, rng)


async def _killed_while_loading(rng: random.Random, times: int) -> Outcome:
    """The last of the deaths counts: the one after which it comes back."""
    async with world() as made:
        moment = 0.0
        for deaths in range(times):
            while (pid := made.engine.pid) is None:
                await asyncio.sleep(0.002)
            await asyncio.sleep(rng.uniform(0.0, 0.1) if deaths else 0.0)
            moment = time.monotonic()
            os.kill(pid, signal.SIGKILL)
            while made.engine.stats.restarts == deaths:
                await asyncio.sleep(0.002)
        noticed = await made.said_after(moment, ["degraded" if times == 5 else "restarting"])
        back = await made.captioned_after(moment)
        await made.chat().result()
        load_s = made.engine.state.load_s or 0.0
        return Outcome(noticed - moment, back - noticed - load_s, load_s)


async def killed_while_loading(rng: random.Random) -> Outcome:
    """SIGKILL, and again while the next one loads."""
    return await _killed_while_loading(rng, 2)


async def five_deaths(rng: random.Random) -> Outcome:
    """Five deaths at once: it waits half a second, says so, and comes back."""
    return await _killed_while_loading(rng, 5)


async def _refused(ask: Callable[[World], Any], command: Sequence[str] | None, rng: random.Random) -> Outcome:
    """A question that fails: nobody else notices."""
    async with world(command) as made:
        await asyncio.sleep(rng.uniform(0.0, 0.5))
        moment = time.monotonic()
        try:
            await ask(made).result()
        except VlmError:
            noticed = time.monotonic()
        else:
            raise AssertionError("it did not fail")
        back = await made.captioned_after(moment)
        assert made.engine.stats.restarts == 0
        return Outcome(noticed - moment, back - moment, 0.0)


async def prompt_too_long(rng: random.Random) -> Outcome:
    """A prompt of more tokens than the context holds."""
    return await _refused(lambda made: made.chat("word " * 5000), None, rng)


async def exception(rng: random.Random) -> Outcome:
    """A bug of the engine amid an answer (stand-in)."""
    order = f'{{"do": "raise", "at": {rng.randrange(4)}}}'
    return await _refused(lambda made: made.chat(order), stand_in_command(token_s=0.01), rng)


async def not_a_number(rng: random.Random) -> Outcome:
    """Logits that are not finite amid an answer (stand-in)."""
    order = f'{{"do": "nan", "at": {rng.randrange(4)}}}'
    return await _refused(lambda made: made.chat(order), stand_in_command(token_s=0.01), rng)


async def end_token_never(rng: random.Random) -> Outcome:
    """An answer without end: its deadline ends it (stand-in)."""
    async with world(stand_in_command(token_s=0.01)) as made:
        await asyncio.sleep(rng.uniform(0.0, 0.5))
        moment, limit_s = time.monotonic(), rng.uniform(0.5, 2.0)
        words = (AskMessage("user", ('{"do": "endless"}',)),)
        result = await made.engine.ask(Ask("chat", words, deadline_s=limit_s)).result()
        assert result.finish_reason == "deadline"
        noticed = time.monotonic() - moment - limit_s
        return Outcome(noticed, await made.captioned_after(moment) - moment, 0.0)


KINDS: dict[str, Callable[[random.Random], Awaitable[Outcome]]] = {
    "kill": killed,
    "segv": crashed,
    "stop": stopped,
    "exit during load": killed_while_loading,
    "five deaths in a minute": five_deaths,
    "exception": exception,
    "nan": not_a_number,
    "end token never": end_token_never,
    "prompt too long": prompt_too_long,
}


def measured(kind: str, seeds: int) -> dict[str, Any]:
    """All injections of one kind as a row of the report."""
    outcomes: list[Outcome] = []
    failures: list[str] = []
    for seed in range(seeds):
        try:
            outcomes.append(asyncio.run(KINDS[kind](random.Random(f"{kind} {seed}"))))
        except (AssertionError, TimeoutError, VlmError) as problem:
            failures.append(f"seed {seed}: {type(problem).__name__}: {problem}")
    row: dict[str, Any] = {"kind": kind, "injections": seeds, "recovered": len(outcomes), "failures": failures}
    for name in ("noticed_s", "back_s", "load_s"):
        values = sorted(getattr(outcome, name) for outcome in outcomes)
        if values:
            row[name] = {"median": round(values[len(values) // 2], 3), "p95": round(values[_p95(len(values))], 3)}
    return row


def _p95(count: int) -> int:
    return min(count - 1, -(-95 * count // 100) - 1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--kinds", help="names, separated by commas (default: all)")
    parser.add_argument("--out", type=Path, help="append the JSON line to this file")
    args = parser.parse_args()
    kinds = list(KINDS) if args.kinds is None else args.kinds.split(",")
    rows = []
    for kind in kinds:
        rows.append(measured(kind, args.seeds))
        sys.stderr.write(f"{rows[-1]}\n")
    row = {"bench": "faults_engine", "bundle": BUNDLE.name, "hang_s": HANG_S, "kinds": rows}
    write_line(row | environment(), args.out)
    return 0 if all(row["recovered"] == row["injections"] for row in rows) else 1


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    raise SystemExit(main())
