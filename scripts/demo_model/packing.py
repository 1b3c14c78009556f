"""Conversations as token rows: the image prefix once, then independent question/answer segments, or one conversation.

A packed row equals separate sequences: a segment sees the prefix and itself (block-diagonal causal mask) and its
positions start where the prefix ends. Tokens are exactly those of the tokenizer and the chat template.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from scripts.demo_model.pictures import Family
from scripts.demo_model.vocabulary import EOS, IMAGE

IGNORE = -100
SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"


@dataclass(frozen=True)
class Row:
    """One picture with its questions; `conversation` = turns that see each other, otherwise separate segments."""

    num_image_tokens: int
    qas: Sequence[tuple[str, str]]
    conversation: bool = False


@dataclass(frozen=True)
class Packed:
    """Rows of T tokens. `labels[b, t]` is the token after position t, or -100; `segment` is 0 for the prefix, j + 1 for
    question j, -1 for padding."""

    ids: Tensor  # int64 [B, T]
    positions: Tensor  # int64 [B, T]
    segment: Tensor  # int64 [B, T]
    labels: Tensor  # int64 [B, T]
    is_image: Tensor  # bool [B, T]
    visible: Tensor  # bool [B, 1, T, T]


class Packer:
    """Packs rows with one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, family: Family) -> None:
        self.family = family
        self.encode = lru_cache(maxsize=65536)(lambda text: tuple(tokenizer.encode(text, add_special_tokens=False)))
        self.image_id = tokenizer.convert_tokens_to_ids(IMAGE)
        if family == "demo-llava":
            self.before = (tokenizer.bos_token_id, *self.encode("USER: "))
            self.after = self.encode("\n")
        else:
            self.before = self.encode(SYSTEM)
            self.after = self.encode("\n") * 2  # one from the image encoder, one from the text
        self.eos_text = EOS[family]

    def prefix(self, num_image_tokens: int) -> tuple[int, ...]:
        """The token ids that all segments share, image placeholders included."""
        return (*self.before, *(self.image_id,) * num_image_tokens, *self.after)

    def question(self, text: str, first: bool = True) -> tuple[int, ...]:
        """A question up to where the answer begins; `first` follows the image."""
        if self.family == "demo-llava":
            return self.encode(text + " ASSISTANT:") if first else self.encode(f"USER: {text} ASSISTANT:")
        turn = f"{text}<|im_end|>\n<|im_start|>assistant\n"
        return self.encode(turn if first else f"\n<|im_start|>user\n{turn}")

    def answer(self, text: str) -> tuple[int, ...]:
        return self.encode((" " if self.family == "demo-llava" else "") + text + self.eos_text)

    def pack(self, rows: Sequence[Row], length: int | None = None) -> Packed:
        """Rows to tensors of `length` tokens; what does not fit is left out (default: as long as needed)."""
        laid = [self._row(row, length) for row in rows]
        total = length or max(len(row[0]) for row in laid)
        table = np.zeros((4, len(rows), total), np.int64)
        table[2], table[3] = -1, IGNORE
        for i, row in enumerate(laid):
            table[:, i, : len(row[0])] = row
        ids, positions, segment, labels = torch.from_numpy(table)
        causal = torch.ones(total, total, dtype=torch.bool).tril()
        same = (segment[:, None, :] == 0) | (segment[:, :, None] == segment[:, None, :])
        visible = (causal & same)[:, None]
        return Packed(ids, positions, segment, labels, (ids == self.image_id) & (segment == 0), visible)

    def _row(self, row: Row, length: int | None) -> tuple[list[int], list[int], list[int], list[int]]:
        ids = list(self.prefix(row.num_image_tokens))
        start = len(ids)
        positions, segment, labels = list(range(start)), [0] * start, [IGNORE] * start
        for j, (question, answer) in enumerate(row.qas):
            chained = row.conversation and j > 0
            asked, said = self.question(question, first=not chained), self.answer(answer)
            size = len(asked) + len(said)
            if length and len(ids) + size > length:
                if row.conversation:
                    break
                continue
            begin = len(ids) if row.conversation else start
            positions += range(begin, begin + size)
            segment += [1 if row.conversation else j + 1] * size
            ids += [*asked, *said]
            labels += [IGNORE] * (len(asked) - 1) + [*said] + [IGNORE]
        return ids, positions, segment, labels
