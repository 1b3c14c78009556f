"""Prompts as questions to the engine, and answers as captions with fields."""

from __future__ import annotations

import json
from collections.abc import Mapping

from runtime.captiond.asks import Ask, AskMessage, AskResult, ConstraintSpec, NewestFrame
from runtime.captiond.config.settings import PromptSettings, SourceSettings
from runtime.captiond.events import CaptionFinished, FrameFacts

YES_NO = ("yes", "no")
CHAT_PRIORITY = 0
DEFAULT_PROMPT = PromptSettings(id="describe", text="Describe the image.")
_NS_PER_MS = 1e6


def question(source: SourceSettings, prompt: PromptSettings, after_seq: int, *, paced: bool) -> Ask:
    """Ask ``prompt`` about the newest frame of ``source`` above ``after_seq``.

    ``paced``: captions come at a cadence, which leaves time for others; one after the other with a priority above that
    of chats would leave them none, so then they share by weight.
    """
    system = () if prompt.system is None else (AskMessage("system", (prompt.system,)),)
    params: dict[str, object] = {"max_new_tokens": prompt.max_new_tokens, "temperature": prompt.temperature}
    if prompt.seed is not None:
        params["seed"] = prompt.seed
    return Ask(
        kind="caption",
        messages=(*system, AskMessage("user", (0, prompt.text))),
        pictures=(NewestFrame(source.name, after_seq),),
        params=params,
        constraint=_constraint(prompt),
        priority=source.priority if paced else min(source.priority, CHAT_PRIORITY),
        weight=source.weight,
    )


def _constraint(prompt: PromptSettings) -> ConstraintSpec | None:
    if prompt.kind == "yes_no":
        return ConstraintSpec("choice", choices=YES_NO)
    if prompt.kind == "json":
        if prompt.schema is None:
            return ConstraintSpec("json")
        return ConstraintSpec("json_schema", schema=prompt.schema)
    return None


def fields_of(prompt: PromptSettings, result: AskResult) -> Mapping[str, object] | None:
    """What a structured answer says; None for a text prompt, and for an answer that was cut off."""
    if prompt.kind == "yes_no":
        answer = result.text.strip().lower()
        return {"answer": answer} if answer in YES_NO else None
    if prompt.kind == "json":
        try:
            value = json.loads(result.text)
        except (ValueError, RecursionError):
            return None
        return value if isinstance(value, dict) else {"answer": value}
    return None


def field_value(fields: Mapping[str, object], path: str) -> object:
    """The value at a dotted path; None where there is none."""
    value: object = fields
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def caption(
    number: int, frame: FrameFacts, prompt: PromptSettings, result: AskResult, model: str, skipped: int
) -> CaptionFinished:
    """A whole caption; its ages count from the capture of its frame."""
    return CaptionFinished(
        caption=number,
        frame=frame,
        prompt_id=prompt.id,
        prompt=prompt.text,
        text=result.text,
        fields=fields_of(prompt, result),
        finish_reason=result.finish_reason,
        model=model,
        tokens=result.completion_tokens,
        age_first_ms=_age_ms(frame, result.first_t_ns),
        age_last_ms=_age_ms(frame, result.last_t_ns),
        ttft_ms=result.timings_ms.get("ttft_ms", 0.0),
        tokens_per_s=result.timings_ms.get("decode_tokens_per_s", 0.0),
        skipped=skipped,
        timings_ms=result.timings_ms,
    )


def _age_ms(frame: FrameFacts, t_ns: int | None) -> float | None:
    return None if t_ns is None else (t_ns - frame.t_capture_ns) / _NS_PER_MS
