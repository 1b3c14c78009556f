"""The tokens of one answer, a decoder step at a time: drawn here, chosen on the device, or forced by a grammar.

`Ahead` is the device's own sampling, which runs one step ahead of its reader and belongs to one answer at a time. It is
used while an answer is alone; with others in between each step would be computed twice. Called by `runtime.pipeline`.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from runtime.decoder import Decoder, SamplingDecoder
from runtime.request import Request
from runtime.sampling import Sampler
from runtime.slots import KvCache, slot_of

Logits = npt.NDArray[np.float32]

FORCED_AT_ONCE = 8  # rows of logits that a step leaves on the host: 5 MB at a vocabulary of 152k


class Chosen(NamedTuple):
    """A token, its logprob, and the most probable ones in its place."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


class Ahead:
    """The one sampling that a decoder may have under way, and whose it is. Any other call for the decoder ends it."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder if isinstance(decoder, SamplingDecoder) else None
        self._request: Request | None = None
        self._tokens: Generator[tuple[int, float], None, None] | None = None

    @property
    def possible(self) -> bool:
        """Whether the decoder can sample."""
        return self._decoder is not None

    def enter(self, request: Request) -> None:
        """The unit of work that begins is this request's: the sampling of another is over."""
        if self._request is not request:
            self.end()

    def next(self, request: Request, slot: int, last: int, sampler: Sampler) -> tuple[int, float]:
        """The token after ``last``, which is appended to the slot."""
        assert self._decoder is not None, "this decoder cannot sample"
        self.enter(request)
        if self._tokens is None:
            self._tokens, self._request = self._decoder.sampled(slot, last, sampler.draws()), request
        return next(self._tokens)

    def leave(self, request: Request) -> None:
        """This request needs it no more."""
        if self._request is request:
            self.end()

    def end(self) -> None:
        """Close what is under way; at most one step was in vain."""
        tokens, self._tokens, self._request = self._tokens, None, None
        if tokens is not None:
            tokens.close()


class NextTokens:
    """Chooses the tokens of one answer of at most ``limit``; one instance serves one answer.

    ``cache.ids`` follows the KV cache: it has every token but the last one that was given out.
    """

    def __init__(
        self,
        decoder: Decoder,
        ahead: Ahead,
        request: Request,
        cache: KvCache,
        *,
        stop_ids: frozenset[int],
        limit: int,
    ) -> None:
        self._decoder, self._ahead, self._request, self._cache = decoder, ahead, request, cache
        self._slot = slot_of(cache)
        self._stop_ids, self._left = stop_ids, limit
        self._sampler = Sampler(request.params, decoder.vocab, request.encoded.token_ids.tolist())
        self._matcher = request.matcher
        self._on_device = ahead.possible and self._matcher is None and request.params.top_logprobs == 0
        self._last = -1

    @property
    def whole(self) -> bool:
        """Whether the form that was asked for is complete and nothing can follow."""
        return self._matcher is not None and self._matcher.done

    def begin(self, logits: Logits) -> list[Chosen]:
        """The first token, behind the prompt's logits f32 [V], and those that are forced behind it."""
        forced = self._forced()
        chosen = self._choose(logits[None], forced[:1])
        if len(forced) > 1:
            rows = self._decode(forced[:-1])
            chosen += self._choose(rows, forced[1:])
        return self._given(chosen)

    def step(self) -> list[Chosen]:
        """One decoder step: the next token, or all that are forced now, at most `FORCED_AT_ONCE`."""
        clock = self._request.clock
        if self._on_device and self._request.alone:
            with clock.stage("decode"):
                token_id, logprob = self._ahead.next(self._request, self._slot, self._last, self._sampler)
            self._cache.ids.append(self._last)
            self._sampler.passed(token_id)
            return self._given([Chosen(token_id, logprob)])
        self._ahead.end()
        forced = self._forced()
        rows = self._decode([self._last, *forced[:-1]])
        return self._given(self._choose(rows, forced))

    def close(self) -> None:
        """The answer is over, or failed."""
        self._ahead.leave(self._request)

    def _decode(self, token_ids: Sequence[int]) -> Logits:
        with self._request.clock.stage("decode", len(token_ids)):
            rows = self._decoder.decode(self._slot, token_ids)
        self._cache.ids += token_ids
        return rows

    def _forced(self) -> list[int]:
        if self._matcher is None:
            return []
        return list(self._matcher.forced()[: min(FORCED_AT_ONCE, self._left)])

    def _choose(self, rows: Logits, forced: Sequence[int]) -> list[Chosen]:
        """The forced tokens, one behind each row of logits, or one that is drawn behind the last row."""
        with self._request.clock.stage("sample"):
            if not forced:
                return [self._drawn(rows[-1])]
            return [self._followed(row, token_id) for row, token_id in zip(rows, forced, strict=True)]

    def _drawn(self, logits: Logits) -> Chosen:
        if self._matcher is None:
            token_id, logprob = self._sampler.sample(logits)
            return Chosen(token_id, logprob, self._sampler.top(logits))
        while True:  # a token that leaves no room for the end of the form is refused, a few times at most
            token_id, logprob = self._sampler.choose(logits, self._matcher.allowed())
            if token_id in self._stop_ids or self._matcher.push(token_id):
                self._sampler.passed(token_id)
                return Chosen(token_id, logprob, self._sampler.top(logits))

    def _followed(self, logits: Logits, token_id: int) -> Chosen:
        assert self._matcher is not None, "nothing forces a token without a form"
        logprob = self._sampler.follow(logits, token_id)
        self._matcher.push(token_id)
        return Chosen(token_id, logprob, self._sampler.top(logits))

    def _given(self, chosen: list[Chosen]) -> list[Chosen]:
        self._last = chosen[-1].token_id
        self._left -= len(chosen)
        return chosen
