"""Putting image features between text embeddings: rows of a batch, labels, padding. Shared by LLaVA and NVILA."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

IGNORE_INDEX = -100
IMAGE_TOKEN_INDEX = -200

Embed = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Row:
    """One sequence: ``embeds`` [n, D] and ``labels`` [n]."""

    embeds: Tensor
    labels: Tensor

    def cut(self, length: int) -> Row:
        """The first ``length`` positions."""
        return Row(self.embeds[:length], self.labels[:length])


@dataclass(frozen=True)
class Batch:
    """Rows padded to one length: embeds [B, n, D], labels [B, n], mask bool [B, n], position_ids [B, n]."""

    embeds: Tensor
    labels: Tensor
    mask: Tensor
    position_ids: Tensor


def splice_images(ids: Tensor, labels: Tensor, features: Iterable[Tensor], embed: Embed) -> Row:
    """One row of LLaVA: each IMAGE_TOKEN_INDEX in ``ids`` [n] becomes the next block of ``features``.

    A row without images takes one block and uses none of it, so that gradients reach the projector in every row.
    Raises IndexError when the features run out.
    """
    blocks = iter(features)
    places = torch.where(ids == IMAGE_TOKEN_INDEX)[0].tolist()
    if not places:
        unused = _next_block(blocks, ids)
        text = embed(ids)
        return Row(torch.cat([text, unused[:0].to(text)]), labels)
    is_text = ids != IMAGE_TOKEN_INDEX
    text = embed(ids[is_text])  # one call for all pieces of the row
    embeds, row_labels, start, taken = [], [], 0, 0
    for place in [*places, len(ids)]:
        length = place - start
        embeds.append(text[taken : taken + length])
        row_labels.append(labels[start:place])
        taken, start = taken + length, place + 1
        if place < len(ids):
            block = _next_block(blocks, ids).to(text)
            embeds.append(block)
            row_labels.append(labels.new_full((len(block),), IGNORE_INDEX))
    return Row(torch.cat(embeds), torch.cat(row_labels))


def _next_block(blocks: Any, ids: Tensor) -> Tensor:
    for block in blocks:
        return block
    places = int((ids == IMAGE_TOKEN_INDEX).sum())
    raise IndexError(f"no image features left for a row with {places} image tokens: hand in more images")


def pad_rows(rows: Sequence[Row], padding_side: str) -> Batch:
    """Rows of unequal length as one batch: zeros, IGNORE_INDEX, mask False and position 0 in the padding.

    ``padding_side``: "right", anything else is left. Positions count from 0 at the first real token on both sides.
    """
    longest = max(len(row.embeds) for row in rows)
    first = rows[0]
    embeds = first.embeds.new_zeros(len(rows), longest, first.embeds.shape[-1])
    labels = first.labels.new_full((len(rows), longest), IGNORE_INDEX)
    mask = torch.zeros(len(rows), longest, dtype=torch.bool, device=embeds.device)
    positions = torch.zeros(len(rows), longest, dtype=torch.long, device=embeds.device)
    for index, row in enumerate(rows):
        length = len(row.embeds)
        place = slice(0, length) if padding_side == "right" else slice(longest - length, longest)
        embeds[index, place] = row.embeds
        labels[index, place] = row.labels
        mask[index, place] = True
        positions[index, place] = torch.arange(length, device=embeds.device)
    return Batch(embeds, labels, mask, positions)


def image_blocks(images: Tensor | Sequence[Tensor], encode: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """One block of features [n, D] for each image token.

    ``images`` [B, C, H, W]: a block per image. A list of [n, C, H, W] (or [C, H, W]), or [B, n, C, H, W]: encoded in
    one call, and the n pictures of an item together are one block [n * N, D].
    """
    if isinstance(images, Tensor) and images.ndim == 4:
        return list(encode(images))
    items = [item if item.ndim == 4 else item.unsqueeze(0) for item in images]
    features = encode(torch.cat(items))
    return [part.flatten(0, 1) for part in torch.split(features, [len(item) for item in items])]


def decode_step_inputs(past_key_values: Any, attention_mask: Tensor | None, rows: int) -> tuple[Tensor, Tensor]:
    """Mask [B, past + 1] and positions [B, 1] of a step that feeds one token after ``past_key_values``.

    The mask is extended on the right with ones for the positions that images took; the position is the number of real
    positions before the new one.
    """
    total = past_length(past_key_values) + 1
    mask = torch.ones(rows, total, dtype=torch.long) if attention_mask is None else attention_mask
    missing = total - mask.shape[1]
    mask = torch.cat([mask, mask.new_ones(mask.shape[0], missing)], dim=1) if missing > 0 else mask
    return mask, mask.long().sum(dim=1, keepdim=True) - 1


def past_length(past_key_values: Any) -> int:
    """Positions in a cache: transformers' Cache object or the older tuple of (key, value) per layer."""
    if hasattr(past_key_values, "get_seq_length"):
        return int(past_key_values.get_seq_length())
    return int(past_key_values[-1][-1].shape[-2])
