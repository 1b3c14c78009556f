"""An engine without a model: the child's real server around answers from a script, with faults on order.

    engine = EngineClient(settings, 2, publish, clock, command=stand_in_command(faults=[{"at": 3, "do": "kill"}]))

It starts in about 0.2 s and writes "a stand-in saw <source's frame seq> …", one word a token, `words` of them. What a
question says comes first: a question (the last user text) of the form ``{"words": 3, "do": "segv"}`` (JSON) sets the
words and a fault of its own answer. ``faults`` count the questions of one child, from 0: ``{"ask": n, "at": token,
"do": what}``; a fault without "ask" fits every question. ``lives`` has one script per life of the engine, the last
one for all further ones.

do: kill, segv, stop (signals to itself), exit, raise (a bug), nan (EngineError), prompt (PromptError), sticky (an error
that ends the child), endless (words without end), hang (no more words), hang_loop (nothing at all any more).
load: "exit", "raise", "refuse" (BundleError), "hang", "kill"; load_s: seconds that it takes.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from runtime.captiond.asks import Ask, AskDelta, AskResult, TokenChance
from runtime.captiond.config.settings import EngineSettings
from runtime.captiond.engine.child import run, socket_of
from runtime.captiond.engine.messages import EngineFacts
from runtime.captiond.engine.server import Pixels
from runtime.errors import BundleError, DeadlineError, EngineError, PromptError

ROOT = Path(__file__).resolve().parents[3]
NAME = "tests.runtime.captiond.stand_in_engine"
MODEL = "stand-in"


def stand_in_command(
    lives: Sequence[dict[str, Any]] = (), *, count_file: Path | None = None, **script: Any
) -> tuple[str, ...]:
    """What to pass as ``command``. Either one ``script`` for all lives, or ``lives`` with a ``count_file`` of theirs.

    Keys of a script: words (4), token_s (0.0), load_s (0.0), load (None), faults ([]), json (None: the text of
    answers with a constraint).
    """
    assert bool(lives) == (count_file is not None), "several lives need a file that counts them"
    scripts = list(lives) or [script]
    start = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from {NAME} import main; main()"
    return (sys.executable, "-c", start, json.dumps(scripts), str(count_file or ""))


class StandIn:
    """The model of one life."""

    def __init__(self, script: dict[str, Any]) -> None:
        self.script = script
        self.asked = 0
        self.steps = 0

    def facts(self) -> EngineFacts:
        return EngineFacts(MODEL, "none", 4096, 4096, {"weights": 0})

    def begin(self, ask: Ask, images: Sequence[Pixels]) -> Writing:
        number, self.asked = self.asked, self.asked + 1
        writing = Writing(self, ask, images, number)
        writing.misbehave(-1)
        return writing

    def fatal(self, error: BaseException) -> bool:
        return "sticky" in str(error)


class Writing:
    """One answer."""

    def __init__(self, model: StandIn, ask: Ask, images: Sequence[Pixels], number: int) -> None:
        own = _own_script(ask)
        script = {**model.script, **own}
        self._model = model
        self._ask = ask
        self._token_s = float(script.get("token_s", 0.0))
        self._faults = [{"at": 1, **own}] if "do" in own else model.script.get("faults", [])
        self._number = number
        self._cancelled = asyncio.Event()
        self._endless = False
        self._began = time.monotonic_ns()
        self._times: list[int] = []
        self._written: list[str] = []
        self._words = _words(ask, images, script)
        self._finish = "stop"

    def cancel(self) -> None:
        self._cancelled.set()

    async def __aiter__(self) -> AsyncIterator[AskDelta]:
        index = 0
        while index < len(self._words) or self._endless:
            if self.misbehave(index) == "hang":
                await asyncio.Event().wait()
            if await self._ended():
                return
            text = self._words[index % len(self._words)]
            self._written.append(text)
            self._times.append(time.monotonic_ns())
            self._model.steps += 1
            yield self._delta(text, index)
            index += 1
            if index >= int(str(self._ask.params.get("max_new_tokens", 128))) and not self._endless:
                self._finish = "length"
                return

    async def _ended(self) -> bool:
        """Wait for the time of one token; whether the answer ends before it."""
        try:
            await asyncio.wait_for(self._cancelled.wait(), self._token_s or 0.0)
        except asyncio.TimeoutError:
            await asyncio.sleep(0)
        deadline = self._ask.deadline_s or 60.0
        if self._cancelled.is_set():
            self._finish = "cancelled"
        elif time.monotonic_ns() - self._began > deadline * 1e9:
            self._finish = "deadline"
            if not self._written:
                raise DeadlineError("the deadline passed before the first token")
        return self._finish != "stop"

    def _delta(self, text: str, index: int) -> AskDelta:
        if "top_logprobs" not in self._ask.params:
            return AskDelta(text, index, -0.5, index, self._times[-1])
        chance = TokenChance(text, text.encode(), -0.5)
        others = int(str(self._ask.params["top_logprobs"]))
        return AskDelta(text, index, -0.5, index, self._times[-1], chance, (chance,) * others)

    async def result(self) -> AskResult:
        now = time.monotonic_ns()
        first, last = (self._times[0], self._times[-1]) if self._times else (None, None)
        ttft_ms = 0.0 if first is None else (first - self._began) / 1e6
        rate = (len(self._times) - 1) / max(1e-9, (last - first) / 1e9) if first and last and last > first else 0.0
        timings = {"ttft_ms": ttft_ms, "total_ms": (now - self._began) / 1e6, "decode_tokens_per_s": rate}
        text, count = "".join(self._written), len(self._written)
        return AskResult(text, self._finish, 5, count, 0, 0, first, last, timings)  # type: ignore[arg-type]

    def misbehave(self, token: int) -> str | None:
        """Do what was ordered for this token of this question; "hang" is left to the caller."""
        for fault in self._faults:
            if fault.get("ask", self._number) == self._number and fault.get("at", 0) == token:
                return _do(str(fault["do"]), self)
        return None

    def never_end(self) -> None:
        self._endless = True


def _do(what: str, writing: Writing) -> str | None:
    signals = {"kill": signal.SIGKILL, "segv": signal.SIGSEGV, "stop": signal.SIGSTOP}
    if what in signals:
        os.kill(os.getpid(), signals[what])
    elif what == "exit":
        os._exit(7)
    elif what == "raise":
        raise ZeroDivisionError("a bug of the engine")
    elif what == "nan":
        raise EngineError(
            "the decoder's logits are not finite: 3 of 320 are nan or inf", hint="the weights are damaged"
        )
    elif what == "prompt":
        raise PromptError("the prompt has 5000 tokens (0 of images), the context holds 4096 with the answer")
    elif what == "sticky":
        raise EngineError("sticky: the CUDA context is lost")
    elif what == "hang_loop":
        time.sleep(3600)
    elif what == "endless":
        writing.never_end()
    return "hang" if what == "hang" else None


def _own_script(ask: Ask) -> dict[str, Any]:
    texts = [part for part in ask.messages[-1].parts if isinstance(part, str)]
    if not texts or not texts[-1].startswith("{"):
        return {}
    own: dict[str, Any] = json.loads(texts[-1])
    return own


def _words(ask: Ask, images: Sequence[Pixels], script: dict[str, Any]) -> list[str]:
    if ask.constraint is not None:
        if script.get("json") is not None:
            return [str(script["json"])]
        return [ask.constraint.choices[0] if ask.constraint.choices else "{}"]
    seen = f"{images[0].width}x{images[0].height}" if images else "nothing"
    words = ["a", " stand-in", " saw", f" {seen}"]
    count = int(script.get("words", 4))
    return (words + [f" {index}" for index in range(4, count)])[:count]


def load_stand_in(script: dict[str, Any]) -> StandIn:
    """Load as the script says."""
    time.sleep(float(script.get("load_s", 0.0)))
    how = script.get("load")
    if how == "exit":
        os._exit(3)
    elif how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "raise":
        raise ZeroDivisionError("a bug while loading")
    elif how == "refuse":
        raise BundleError("no-such.bundle: there is no such directory", hint="python -m export.build_engines")
    elif how == "hang":
        time.sleep(3600)
    return StandIn(script)


def main() -> None:
    scripts, count_file = json.loads(sys.argv[1]), sys.argv[2]
    life = 0
    if count_file:
        path = Path(count_file)
        life = len(path.read_bytes()) if path.exists() else 0
        path.write_bytes(b"x" * (life + 1))
    script = scripts[min(life, len(scripts) - 1)]

    def load(settings: EngineSettings, captions: int) -> StandIn:
        return load_stand_in(script)

    run(load, socket_of(sys.argv[3:]))
