"""Writes completions as the OpenAI API has them: whole, and in pieces."""

from __future__ import annotations

import math
from collections.abc import Sequence

from runtime.captiond.asks import AskDelta, AskResult, TokenChance
from runtime.captiond.http.json_text import dump_json

# An answer that ran into its deadline was cut off like one that ran out of tokens.
_REASONS = {"stop": "stop", "length": "length", "deadline": "length", "cancelled": "stop"}
_LEAST_LOGPROB = -9999.0
DONE = b"data: [DONE]\n\n"


class Writer:
    """The JSON of one completion."""

    def __init__(self, request_id: str, model: str, created: int, *, logprobs: bool, include_usage: bool) -> None:
        self._facts = {"id": request_id, "created": created, "model": model, "system_fingerprint": None}
        self._logprobs = logprobs
        self._include_usage = include_usage

    def whole(self, result: AskResult, deltas: Sequence[AskDelta]) -> dict[str, object]:
        """A whole answer."""
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": result.text, "refusal": None},
            "logprobs": self._chances(deltas),
            "finish_reason": _REASONS[result.finish_reason],
        }
        return {"object": "chat.completion", **self._facts, "choices": [choice], "usage": usage(result)}

    def first(self) -> bytes:
        """The event that begins an answer: who speaks."""
        return self._chunk({"role": "assistant", "content": ""}, None, None)

    def piece(self, delta: AskDelta, *, new_token: bool) -> bytes:
        """The event of some text; none for a token that completes no character, unless its chance is asked for."""
        chances = self._chances([delta] if new_token else [])
        if not delta.text and not (self._logprobs and new_token):
            return b""
        return self._chunk({"content": delta.text}, chances, None)

    def last(self, result: AskResult) -> bytes:
        """The events that end an answer, the token counts among them where they are asked for."""
        end = self._chunk({}, None, _REASONS[result.finish_reason])
        if self._include_usage:
            end += event({"object": "chat.completion.chunk", **self._facts, "choices": [], "usage": usage(result)})
        return end + DONE

    def _chunk(self, delta: dict[str, object], chances: object, reason: str | None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": chances, "finish_reason": reason}
        chunk = {"object": "chat.completion.chunk", **self._facts, "choices": [choice]}
        return event({**chunk, "usage": None} if self._include_usage else chunk)

    def _chances(self, deltas: Sequence[AskDelta]) -> dict[str, object] | None:
        if not self._logprobs:
            return None
        content = [
            {**_chance(delta.token), "top_logprobs": [_chance(chance) for chance in delta.top]}
            for delta in deltas
            if delta.token is not None
        ]
        return {"content": content, "refusal": None}


def event(value: object) -> bytes:
    """One server-sent event."""
    return f"data: {dump_json(value)}\n\n".encode("utf-8", "replace")


def usage(result: AskResult) -> dict[str, object]:
    """The token counts of an answer."""
    return {
        "prompt_tokens": result.prompt_tokens,
        "completion_tokens": result.completion_tokens,
        "total_tokens": result.prompt_tokens + result.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": result.cached_tokens, "image_tokens": result.image_tokens},
    }


def _chance(chance: TokenChance) -> dict[str, object]:
    logprob = chance.logprob if math.isfinite(chance.logprob) else _LEAST_LOGPROB
    return {"token": chance.text, "logprob": logprob, "bytes": list(chance.bytes)}
