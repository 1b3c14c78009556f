"""Events for tests of whatever consumes them."""

from __future__ import annotations

from dataclasses import replace

from runtime.captiond.events import (
    CaptionDelta,
    CaptionFinished,
    CaptionStarted,
    EngineChanged,
    FrameFacts,
    RuleChanged,
    SourceChanged,
    SourceStatus,
)


def frame(source: str = "door", seq: int = 7) -> FrameFacts:
    return FrameFacts(source, seq, 1_000_000_000 + seq, 1_700_000_000.0 + seq, "arrival", 640, 480)


def started(caption: int, source: str = "door") -> CaptionStarted:
    return CaptionStarted(caption, frame(source, caption), "default", "What is there?")


def delta(caption: int, index: int, text: str, source: str = "door") -> CaptionDelta:
    return CaptionDelta(caption, source, text, index, 1_000_000_100 + index)


def finished(caption: int, text: str = "a red ball", source: str = "door", **changes: object) -> CaptionFinished:
    event = CaptionFinished(
        caption=caption,
        frame=frame(source, caption),
        prompt_id="default",
        prompt="What is there?",
        text=text,
        fields=None,
        finish_reason="stop",
        model="demo-llava",
        tokens=4,
        age_first_ms=81.5,
        age_last_ms=120.25,
        ttft_ms=60.0,
        tokens_per_s=91.0,
        skipped=2,
        timings_ms={"vision": 20.0},
    )
    return replace(event, **changes)  # type: ignore[arg-type]


def rule(name: str = "dog", active: bool = True, source: str = "door", caption: int = 3) -> RuleChanged:
    return RuleChanged(source, name, active, "yes", caption, frame(source, caption))


def source_changed(status: SourceStatus = "live", cause: str = "", source: str = "door") -> SourceChanged:
    return SourceChanged(source, status, cause, "said for people", 1, None)


def engine_changed() -> EngineChanged:
    return EngineChanged("ready", "", "the model is loaded", 0, 1.5)
