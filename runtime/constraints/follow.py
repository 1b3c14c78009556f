"""Follows one answer: which tokens may come, and whether what is left of the budget still holds its end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.constraints.plan import Planner
from runtime.constraints.vocabulary import Spelling, Vocabulary
from runtime.errors import EngineError, InputError

MAX_REFUSALS = 8


class BudgetMatcher:
    """A `runtime.constraint.Matcher`. Between two tokens there is always a plan that fits into what is left.

    A token is taken when a plan that fits was found for after it; the first token of the plan is one that can be taken.
    ``matcher`` follows the grammar over tokens, ``planner`` over bytes.
    """

    def __init__(
        self, vocabulary: Vocabulary, matcher: Any, planner: Planner, stop_ids: Sequence[int], budget: int
    ) -> None:
        self._vocabulary = vocabulary
        self._matcher: Any | None = matcher
        self._planner = planner
        self._stop_ids = [token_id for token_id in stop_ids if 0 <= token_id < len(vocabulary.ordinary)]
        self._left = budget
        self._ended = False
        self._refused: set[int] = set()
        self._mask: npt.NDArray[np.bool_] | None = None
        self._bits = np.zeros((max(len(vocabulary.ordinary), vocabulary.tokenizer.vocab_size) + 31) // 32, np.uint32)
        self._spelling = Spelling(vocabulary, planner.plan)
        needed = self._spelling.counts[0]
        if needed > budget:
            raise InputError(
                f"an answer of this form needs at least {needed} tokens, {budget} are left for it",
                hint=f"allow {needed} tokens or more",
            )

    @property
    def done(self) -> bool:
        return self._ended or (not self._planner.plan and (self._left == 0 or self._planner.ended))

    def allowed(self) -> npt.NDArray[np.bool_]:
        if self._mask is None:
            self._mask = self._grammar_mask()
        mask = self._mask
        mask[list(self._refused)] = False
        if len(self._refused) >= MAX_REFUSALS:
            mask[:] = False
        if not self._planner.plan:
            mask[self._stop_ids] = True
        elif not mask.any():
            mask[self._planned()] = True
        return mask

    def push(self, token_id: int) -> bool:
        if token_id in self._stop_ids and not self._planner.plan:
            self._ended = True
            return True
        data = self._vocabulary.spelled(token_id)
        plan = self._planner.after(data) if data and self._left > 0 else None
        if plan is None or not self._fits(plan, self._left - 1):
            if 0 <= token_id < len(self._vocabulary.ordinary):
                self._refused.add(token_id)
            return False
        if self._matcher is not None and not self._matcher.consume_token(token_id):
            self._matcher = None  # a limit of the library: from here on the answer follows its plan
        self._planner.advance(data, plan)
        self._left -= 1
        self._refused.clear()
        self._mask = None
        return True

    def forced(self) -> Sequence[int]:
        if self._matcher is None or self.done:
            return ()
        tokens: list[int] = self._matcher.compute_ff_tokens()
        data = b"".join(map(self._vocabulary.spelled, tokens))
        if not data or not all(map(self._vocabulary.spelled, tokens)) or len(tokens) > self._left:
            return ()
        plan = self._planner.plan
        if not plan.startswith(data) or not self._fits(plan[len(data) :], self._left - len(tokens)):
            return ()
        return tokens

    def _grammar_mask(self) -> npt.NDArray[np.bool_]:
        """What the grammar takes next, whatever the budget; nothing when the library has given up."""
        width = len(self._vocabulary.ordinary)
        if self._matcher is None or self.done:
            return np.zeros(width, np.bool_)
        self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        if self._matcher.is_error():
            self._matcher = None
            return np.zeros(width, np.bool_)
        bits = np.unpackbits(self._bits.view(np.uint8), count=width, bitorder="little")
        return bits.view(np.bool_) & self._vocabulary.ordinary

    def _fits(self, plan: bytes, tokens: int) -> bool:
        # Each byte of a plan has a token of its own, or the spelling would be infinite.
        if len(plan) <= tokens and plan.isascii():
            return True
        return self._count(plan) <= tokens

    def _count(self, plan: bytes) -> float:
        if not self._spelling.text.endswith(plan):
            self._spelling = Spelling(self._vocabulary, plan)
        return self._spelling.counts[len(self._spelling.text) - len(plan)]

    def _planned(self) -> int:
        """The token that the plan begins with."""
        plan = self._planner.plan
        self._count(plan)
        token_id = self._spelling.first[len(self._spelling.text) - len(plan)]
        if token_id is None:
            raise EngineError("the plan of an answer has no tokens", hint="report this with the schema")
        return token_id
