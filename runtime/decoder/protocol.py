"""What every decoder offers: numbered slots, each with its own KV cache, fed with embeddings or token ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]


class Decoder(Protocol):
    """An autoregressive decoder over numbered slots. Not thread-safe: one owner thread uses it.

    A failed call leaves every slot as it was before it, as long as the decoder is open.
    """

    @property
    def hidden(self) -> int:
        """Width of an embedding."""

    @property
    def vocab(self) -> int:
        """Length of a row of logits."""

    @property
    def max_seq_len(self) -> int:
        """Positions of a slot's KV cache."""

    def open(self, slots: int) -> None:
        """Gives the decoder this many slots, all empty; what older slots held is gone. InputError below one."""

    def prefill(self, slot: int, inputs_embeds: F32, *, num_logits: int = 1) -> F32:
        """Appends embeddings f32 [S, hidden] at ``length(slot)``; logits f32 [num_logits, vocab] of the last positions.

        The result is a new array. PromptError before anything runs when S is 0, num_logits is not 1..S, or the slot
        would exceed max_seq_len.
        """

    def decode(self, slot: int, token_ids: Sequence[int]) -> F32:
        """Appends n ≥ 1 tokens and gives logits f32 [n, vocab], one row after each of them.

        The result is valid until the next call for this slot. PromptError as for prefill, and for unknown ids.
        """

    def embed(self, token_ids: Sequence[int] | npt.NDArray[np.int64]) -> F32:
        """Rows of the token table, a new f32 [n, hidden]; PromptError for an id outside the table."""

    def length(self, slot: int) -> int:
        """Positions of the slot that are filled."""

    def truncate(self, slot: int, length: int) -> None:
        """Forgets all positions from ``length`` on; InputError outside 0..length(slot)."""

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        """Makes ``target`` hold the first ``length`` positions of ``source``; InputError outside 0..length(source)."""

    def close(self) -> None:
        """Gives memory and threads back; harmless when repeated. Any other call after it is a ClosedError."""
