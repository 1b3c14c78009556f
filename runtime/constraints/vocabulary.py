"""What the tokens of a model's vocabulary spell, and how few of them spell a given text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.constraints import grammar
from runtime.errors import EngineError

_LONGEST = 24  # bytes of a token that a plan is put together from; longer ones only make it shorter


class Vocabulary:
    """``ordinary`` bool [V]: the ids that spell text. Ids of padding, special and added tokens do not.

    ``tokenizer`` is llguidance's, for matchers. Raises EngineError for a tokenizer that cannot spell printable ASCII.
    """

    def __init__(self, tokenizer_json: str, vocab: int, end_ids: Sequence[int]) -> None:
        added, size = _added_ids(tokenizer_json)
        width = max(vocab, size)
        self.tokenizer = grammar.tokenizer_of(tokenizer_json, width, end_ids)
        self.ordinary: npt.NDArray[np.bool_] = np.zeros(vocab, np.bool_)
        self._spelled: list[bytes] = [b""] * vocab
        self.ids: dict[bytes, int] = {}
        for token_id in range(min(vocab, size)):
            if token_id in added or token_id in end_ids or self.tokenizer.is_special_token(token_id):
                continue
            spelled: bytes = self.tokenizer.decode_bytes([token_id])
            if spelled:
                self.ordinary[token_id] = True
                self._spelled[token_id] = spelled
                if len(spelled) <= _LONGEST:
                    self.ids.setdefault(spelled, token_id)
        missing = [chr(value) for value in range(32, 127) if bytes([value]) not in self.ids]
        if missing:
            raise EngineError(f"tokenizer.json has no token for {missing[0]!r} alone: answers cannot be constrained")

    def spelled(self, token_id: int) -> bytes:
        """The bytes of an ordinary token; none for another."""
        return self._spelled[token_id] if 0 <= token_id < len(self._spelled) else b""


class Spelling:
    """The fewest tokens for a text and for each of its ends.

    ``counts[i]``: tokens for ``text[i:]``; ``first[i]``: the first of them. None where no tokens spell it.
    """

    def __init__(self, vocabulary: Vocabulary, text: bytes) -> None:
        self.text = text
        ids = vocabulary.ids
        self.counts: list[float] = [float("inf")] * len(text) + [0]
        self.first: list[int | None] = [None] * len(text)
        for start in range(len(text) - 1, -1, -1):
            for stop in range(start + 1, min(start + _LONGEST, len(text)) + 1):
                count = self.counts[stop] + 1
                if count < self.counts[start]:
                    token_id = ids.get(text[start:stop])
                    if token_id is not None:
                        self.counts[start], self.first[start] = count, token_id


@lru_cache(maxsize=2)
def vocabulary_of(tokenizer_json: str, vocab: int, end_ids: tuple[int, ...]) -> Vocabulary:
    """Read once per model: 152k tokens take most of a second."""
    return Vocabulary(tokenizer_json, vocab, end_ids)


def _added_ids(tokenizer_json: str) -> tuple[frozenset[int], int]:
    """Ids of added tokens, and how many ids the tokenizer has."""
    description: dict[str, Any] = json.loads(tokenizer_json)
    added = frozenset(int(item["id"]) for item in description.get("added_tokens") or [])
    model = description.get("model", {}).get("vocab") or {}
    ids = range(len(model)) if isinstance(model, list) else model.values()
    return added, 1 + max([*added, *ids], default=-1)
