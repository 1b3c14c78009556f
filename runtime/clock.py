"""Where the time of a request goes: nanoseconds per stage, and the first token's. Called by the pipeline."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from runtime.types import Timings

STAGES = (
    "capture",
    "layout",
    "preprocess",
    "vision",
    "prompt",
    "fusion",
    "prefill",
    "decode",
    "sample",
    "detokenize",
)
_NS_PER_MS = 1e6


class StageClock:
    """Adds up the time of each stage of one request; starts when it is made. CLOCK_MONOTONIC."""

    def __init__(self) -> None:
        self._start_ns = time.monotonic_ns()
        self._spent_ns = dict.fromkeys(STAGES, 0)
        self._steps = 0
        self._first_ns: int | None = None

    @contextmanager
    def stage(self, name: str, tokens: int = 1) -> Iterator[None]:
        """Time what happens inside as part of the stage ``name``; ``tokens`` that a decoder step appends."""
        begin = time.monotonic_ns()
        try:
            yield
        finally:
            self._spent_ns[name] += time.monotonic_ns() - begin
            self._steps += tokens if name == "decode" else 0

    def token(self) -> int:
        """The instant of a token in ns; the first one is remembered."""
        now = time.monotonic_ns()
        if self._first_ns is None:
            self._first_ns = now
        return now

    def timings(self) -> Timings:
        """The figures of a request that ends now. Tokens per second count decode steps: all tokens after the first."""
        spent_ms = {name: ns / _NS_PER_MS for name, ns in self._spent_ns.items()}
        first = self._first_ns
        decode_s = spent_ms["decode"] / 1e3
        return Timings(
            capture_ms=spent_ms["capture"],
            layout_ms=spent_ms["layout"],
            preprocess_ms=spent_ms["preprocess"],
            vision_ms=spent_ms["vision"],
            prompt_ms=spent_ms["prompt"],
            fusion_ms=spent_ms["fusion"],
            prefill_ms=spent_ms["prefill"],
            decode_ms=spent_ms["decode"],
            sample_ms=spent_ms["sample"],
            detokenize_ms=spent_ms["detokenize"],
            ttft_ms=0.0 if first is None else (first - self._start_ns) / _NS_PER_MS,
            total_ms=(time.monotonic_ns() - self._start_ns) / _NS_PER_MS,
            decode_tokens_per_s=self._steps / decode_s if decode_s > 0 else 0.0,
        )
