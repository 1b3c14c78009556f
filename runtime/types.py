"""The nouns that travel through the runtime: frames in, deltas and answers out.

Every part of ``runtime`` may import this module; it imports numpy alone. Times are nanoseconds of CLOCK_MONOTONIC
(``time.monotonic_ns``) unless a name says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
import numpy.typing as npt

ImageArray = npt.NDArray[np.uint8]
FinishReason = Literal["stop", "length", "cancelled", "deadline"]
CaptureKind = Literal["exposure", "arrival"]

MAX_NEW_TOKENS_DEFAULT = 128


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One picture of a source.

    ``rgb`` u8 [H, W, 3], red first. ``t_capture_ns``: CLOCK_MONOTONIC. ``seq``: the number of the frame in its source,
    from 0, also counting frames that nobody took. ``t_capture_kind``: "exposure" when the camera stamped it, "arrival"
    when this process did. ``source``: the URI it came from, without credentials.
    """

    rgb: ImageArray
    t_capture_ns: int
    seq: int
    t_capture_kind: CaptureKind = "arrival"
    source: str = ""


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of an answer: whole characters only, possibly none.

    ``logprob``: natural logarithm of the probability of ``token_id``. ``index``: its position in the answer, from 0.
    ``t_ns``: when it was ready. ``top``: the most probable tokens of that place with their logarithms, best first, as
    many as `GenerationParams.top_logprobs` asks for; empty in a delta that only brings text held back before.
    """

    text: str
    token_id: int
    logprob: float
    index: int
    t_ns: int
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one answer; ``image_tokens`` and ``cached_tokens`` are part of ``prompt_tokens``."""

    prompt_tokens: int
    completion_tokens: int
    image_tokens: int = 0
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Timings:
    """Milliseconds spent per stage; the names are those of the stages, in their order.

    ``ttft_ms``: from the request to the first token. ``decode_tokens_per_s``: tokens after the first over
    ``decode_ms``. A stage that did not run is 0.
    """

    capture_ms: float = 0.0
    layout_ms: float = 0.0
    preprocess_ms: float = 0.0
    vision_ms: float = 0.0
    prompt_ms: float = 0.0
    fusion_ms: float = 0.0
    prefill_ms: float = 0.0
    decode_ms: float = 0.0
    sample_ms: float = 0.0
    detokenize_ms: float = 0.0
    ttft_ms: float = 0.0
    total_ms: float = 0.0
    decode_tokens_per_s: float = 0.0

    def as_dict(self) -> Mapping[str, float]:
        """The figures by name, for JSON."""
        return {field.name: float(getattr(self, field.name)) for field in fields(self)}


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished answer.

    ``token_ids`` and ``logprobs`` have one entry per generated token (the end token is not among them).
    ``finish_reason``: "stop" (end token or stop string), "length", "cancelled", "deadline".
    """

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason
    usage: Usage
    timings: Timings


@dataclass(frozen=True, slots=True)
class GenerationParams:
    """How the next token is chosen and when an answer ends.

    ``temperature`` 0 is greedy; ``top_k`` 0, ``top_p`` 1, ``min_p`` 0 and ``repetition_penalty`` 1 are off. ``seed``
    None draws a fresh one. ``stop``: strings that end the answer and are not part of it. ``top_logprobs``: how many of
    the most probable tokens each `Delta` names, 0 to 20. Ranges are checked where they are used.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    max_new_tokens: int = MAX_NEW_TOKENS_DEFAULT
    stop: tuple[str, ...] = ()
    top_logprobs: int = 0
