"""Choose the next token from a row of logits.

The order is that of transformers' processors: allowed tokens, repetition penalty, temperature, top-k, top-p, min-p,
draw. A draw uses Philox keyed by the seed with the step as its counter: the same seed, prompt and engine give the same
tokens, whatever ran before. Called by the pipeline; numpy alone.
"""

from __future__ import annotations

import math
import numbers
import secrets
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from runtime.errors import EngineError, InputError
from runtime.types import GenerationParams

Logits = npt.NDArray[np.float32]
Allowed = npt.NDArray[np.bool_]

MAX_SEED = 2**64 - 1
MAX_STOP_STRINGS = 16
MAX_STOP_CHARS = 256
MAX_TOP_LOGPROBS = 20
_FIRST_LOOK = 1024  # the nucleus nearly always lies in the best 1024 tokens: sorting 152k for it would cost 10 ms


def check_params(params: GenerationParams) -> None:
    """Refuse parameters that cannot be: InputError that names the parameter, its value and range."""
    _check_number("temperature", params.temperature, low=0.0, high=100.0)
    _check_number("top_p", params.top_p, low=0.0, high=1.0, low_open=True)
    _check_number("min_p", params.min_p, low=0.0, high=1.0)
    _check_number("repetition_penalty", params.repetition_penalty, low=0.0, high=100.0, low_open=True)
    _check_integer("top_k", params.top_k, low=0, high=2**31)
    _check_integer("max_new_tokens", params.max_new_tokens, low=1, high=2**31)
    _check_integer("top_logprobs", params.top_logprobs, low=0, high=MAX_TOP_LOGPROBS)
    if params.seed is not None:
        _check_integer("seed", params.seed, low=0, high=MAX_SEED)
    _check_stop(params.stop)


@dataclass(frozen=True, slots=True, eq=False)
class Draws:
    """What the draws of an answer depend on besides the logits, for a decoder that chooses tokens on its device.

    ``step``: number of the next draw. ``seen`` bool [V]: tokens that the repetition penalty concerns; None: no penalty.
    """

    params: GenerationParams
    seed: int
    step: int
    seen: npt.NDArray[np.bool_] | None


class Sampler:
    """Draws the tokens of one answer.

    ``vocab`` is the width of the logits. ``prompt_ids`` count for the repetition penalty as in transformers; ids beyond
    the vocabulary (placeholders of images) do not. One instance serves one answer and one thread.
    Raises InputError for parameters out of range.
    """

    def __init__(self, params: GenerationParams, vocab: int, prompt_ids: Iterable[int] = ()) -> None:
        check_params(params)
        self._params = params
        self._vocab = vocab
        self._seed = secrets.randbits(64) if params.seed is None else int(params.seed)
        self._step = 0
        self._seen: npt.NDArray[np.bool_] | None = None
        if params.repetition_penalty != 1.0:
            self._seen = np.zeros(vocab, np.bool_)
            self._seen[[i for i in map(int, prompt_ids) if 0 <= i < vocab]] = True

    def sample(self, logits: Logits, allowed: Allowed | None = None) -> tuple[int, float]:
        """Choose a token: (token_id, logprob).

        logits f32 [V]; allowed bool [V] or None: tokens that may come (a grammar's mask). ``logprob`` is the natural
        logarithm of the token's probability under the model itself: neither filters, temperature, penalty nor mask
        are in it. Raises EngineError for logits of another shape, with a NaN or +inf, or all -inf; InputError for an
        empty mask.
        """
        token_id, logprob = self.choose(logits, allowed)
        self.passed(token_id)
        return token_id, logprob

    def choose(self, logits: Logits, allowed: Allowed | None = None) -> tuple[int, float]:
        """As `sample`, but the token may still be refused: it counts once `passed` is told of it."""
        peak = self._check(logits)
        scores = self.filtered(logits, allowed)
        token_id = int(np.argmax(scores)) if self._params.temperature == 0.0 else self._draw(scores)
        return token_id, float(logits[token_id]) - peak - _log_total(logits, peak)

    def follow(self, logits: Logits, token_id: int) -> float:
        """A token that comes without being drawn, in place of `sample`: its logprob; counts as a step and as seen."""
        peak = self._check(logits)
        self.passed(token_id)
        return float(logits[token_id]) - peak - _log_total(logits, peak)

    def top(self, logits: Logits) -> tuple[tuple[int, float], ...]:
        """The ``top_logprobs`` most probable tokens of the model itself with their logprobs, best first.

        Of equal ones the lowest ids.
        """
        count = min(self._params.top_logprobs, self._vocab)
        if count == 0:
            return ()
        peak = self._check(logits)
        edge = np.partition(logits, -count)[-count]
        above, equal = np.flatnonzero(logits > edge), np.flatnonzero(logits == edge)
        best = np.concatenate([above[np.argsort(-logits[above], kind="stable")], equal[: count - len(above)]])
        total = peak + _log_total(logits, peak)
        return tuple((int(token), float(logits[token]) - total) for token in best)

    def draws(self) -> Draws:
        """Where this answer's draws stand; a later `sample` does not change it."""
        return Draws(self._params, self._seed, self._step, None if self._seen is None else self._seen.copy())

    def filtered(self, logits: Logits, allowed: Allowed | None = None) -> Logits:
        """The scores f32 [V] that the next draw uses; tokens that cannot come are -inf."""
        scores = logits
        if allowed is not None:
            if allowed.shape != logits.shape or not bool(allowed.any()):
                raise InputError(f"allowed: {allowed.shape} with {int(allowed.sum())} tokens for {logits.shape} logits")
            scores = np.where(allowed, scores, np.float32(-np.inf))
        if self._seen is not None:
            scores = _penalise(scores, self._seen, self._params.repetition_penalty)
        if self._params.temperature == 0.0:
            return scores
        # The shift changes no probability and keeps a tiny temperature from overflowing.
        scores = (scores - scores.max()) / np.float32(self._params.temperature)
        scores = _top_k(scores, self._params.top_k)
        scores = _top_p(scores, self._params.top_p)
        return _min_p(scores, self._params.min_p)

    def passed(self, token_id: int) -> None:
        """A token was taken: it counts as a step and as seen."""
        self._step += 1
        if self._seen is not None:
            self._seen[token_id] = True

    def _check(self, logits: Logits) -> float:
        if logits.shape != (self._vocab,):
            raise EngineError(f"logits of shape {logits.shape}, expected ({self._vocab},)")
        peak = float(logits.max())  # a NaN anywhere is the maximum
        if not math.isfinite(peak):
            bad = int(np.count_nonzero(~np.isfinite(logits)))
            raise EngineError(
                f"{bad} of {self._vocab} logits are not finite at step {self._step}",
                hint="the weights or the engine are damaged: python -m runtime.doctor, then rebuild the bundle",
            )
        return peak

    def _draw(self, scores: Logits) -> int:
        kept = np.flatnonzero(scores > -np.inf)
        values = scores[kept].astype(np.float64)
        cumulative = np.cumsum(np.exp(values - values.max()))
        uniform = np.random.Generator(np.random.Philox(key=self._seed, counter=self._step)).random()
        index = int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"))
        return int(kept[min(index, len(kept) - 1)])


def _log_total(logits: Logits, peak: float) -> float:
    """Logarithm of the sum of the exponentials, less ``peak``."""
    return math.log(float(np.exp(logits - peak, dtype=np.float32).sum(dtype=np.float64)))


def _penalise(scores: Logits, seen: Allowed, penalty: float) -> Logits:
    """Negative scores are multiplied, positive ones divided. Source: Keskar et al. 2019 (CTRL), as in transformers."""
    factor = np.float32(penalty)
    return np.where(seen, np.where(scores < 0, scores * factor, scores / factor), scores).astype(np.float32, copy=False)


def _top_k(scores: Logits, top_k: int) -> Logits:
    if top_k == 0 or top_k >= len(scores):
        return scores
    threshold = np.partition(scores, -top_k)[-top_k]
    return np.where(scores < threshold, np.float32(-np.inf), scores)


def _top_p(scores: Logits, top_p: float) -> Logits:
    """Keep the most probable tokens until their mass reaches ``top_p``. Source: Holtzman et al. 2019."""
    if top_p >= 1.0:
        return scores
    weights = np.exp(scores.astype(np.float64) - float(scores.max()))
    target = top_p * float(weights.sum())
    for count in (_FIRST_LOOK, len(scores)):
        count = min(count, len(scores))
        best = np.argpartition(scores, -count)[-count:]
        best = best[np.argsort(-scores[best], kind="stable")]
        before = np.cumsum(weights[best]) - weights[best]
        if before[-1] >= target or count == len(scores):
            break
    keep = scores[best[before < target]]
    # Of equal scores the lowest ids, as kernels/csrc/sample.cu has it: a partition leaves their order to chance.
    edge = keep[-1]
    result = np.where(scores > edge, scores, np.float32(-np.inf))
    result[np.flatnonzero(scores == edge)[: np.count_nonzero(keep == edge)]] = edge
    return result


def _min_p(scores: Logits, min_p: float) -> Logits:
    if min_p == 0.0:
        return scores
    threshold = float(scores.max()) + math.log(min_p)
    return np.where(scores < threshold, np.float32(-np.inf), scores)


def _check_number(name: str, value: float, *, low: float, high: float, low_open: bool = False) -> None:
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not number or not low <= value <= high or (low_open and value == low):
        opening = "above" if low_open else "from"
        raise InputError(f"{name} is {value!r}: a number {opening} {low:g} to {high:g} is needed")


def _check_integer(name: str, value: int, *, low: int, high: int) -> None:
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or not low <= value <= high:
        raise InputError(f"{name} is {value!r}: a whole number from {low} to {high} is needed")


def _check_stop(stop: tuple[str, ...]) -> None:
    if isinstance(stop, str):
        raise InputError(f"stop is the text {stop!r}: a tuple of strings is needed", hint=f"stop=({stop!r},)")
    if len(stop) > MAX_STOP_STRINGS:
        raise InputError(f"{len(stop)} stop strings, the most is {MAX_STOP_STRINGS}")
    for text in stop:
        if not isinstance(text, str) or not 1 <= len(text) <= MAX_STOP_CHARS:
            raise InputError(f"stop string {text!r}: 1 to {MAX_STOP_CHARS} characters are needed")
