"""What travels through the stages of an answer. Made by `Session.stream`, read by `runtime.pipeline`."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from runtime.clock import StageClock
from runtime.constraint import Matcher
from runtime.errors import DeadlineError
from runtime.prompt import EncodedPrompt, Message
from runtime.sampling import check_params
from runtime.text_stream import Control
from runtime.tiling import TileLayout
from runtime.types import Answer, FinishReason, GenerationParams, ImageArray, Usage


@dataclass(slots=True, eq=False)
class Picture:
    """An image of a request: its pixels until the vision engine has seen them, its embeddings from then on."""

    rgb: ImageArray | None
    layout: TileLayout
    embeds: npt.NDArray[np.float32] | None = None


@dataclass(slots=True, eq=False)
class Request:
    """One answer on its way through the stages.

    ``alone``: nobody else's unit of work comes next, as far as is known.
    """

    params: GenerationParams
    control: Control
    clock: StageClock
    pictures: list[Picture]
    messages: tuple[Message, ...]
    encoded: EncodedPrompt
    matcher: Matcher | None = None
    alone: bool = True
    cached_tokens: int = 0
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    finish_reason: FinishReason = "length"

    def answer(self) -> Answer:
        """What came out, once the stages are through."""
        usage = Usage(
            prompt_tokens=len(self.encoded.token_ids),
            completion_tokens=len(self.token_ids),
            image_tokens=self.encoded.num_image_tokens,
            cached_tokens=self.cached_tokens,
        )
        ids, logprobs = tuple(self.token_ids), tuple(self.logprobs)
        return Answer("".join(self.text), ids, logprobs, self.finish_reason, usage, self.clock.timings())


def check_request(params: GenerationParams, deadline_s: float | None) -> None:
    """Refuse what cannot be before anything is loaded."""
    check_params(params)
    if deadline_s is not None and not deadline_s > 0:
        raise DeadlineError(f"deadline_s is {deadline_s}: it has passed already")
