"""Put the image embeddings where the prompt has their placeholders. Called by the pipeline; numpy alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from runtime.errors import PromptError

Embeds = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class PlacedIds:
    """A prompt whose embeddings a decoder puts together itself.

    ids i32 [S]: a token, or -1 - j for row j of images f32 [R, D]; rows stand in the order of the prompt, each once.
    """

    ids: npt.NDArray[np.int32]
    images: Embeds

    def __len__(self) -> int:
        return len(self.ids)

    def part(self, start: int, end: int) -> PlacedIds:
        """Positions ``start:end``, with the image rows that stand there."""
        ids = self.ids[start:end]
        shown = ids < 0
        if not shown.any():
            return PlacedIds(ids, self.images[:0])
        rows = -1 - ids[shown]
        first, last = int(rows[0]), int(rows[-1])
        return PlacedIds(np.where(shown, ids + first, ids).astype(np.int32), self.images[first : last + 1])


def fuse(
    token_ids: npt.NDArray[np.int64],
    token_embeds: Embeds,
    image_embeds: Sequence[Embeds],
    slices: Sequence[slice],
    *,
    placeholder_id: int,
) -> Embeds:
    """Make the decoder's input: token rows, with image rows in place of the placeholders.

    token_ids i64 [S]; token_embeds f32 [S, D] (rows at placeholders are ignored); image_embeds: per image
    f32 [N_i, D]; slices: per image the N_i positions that it fills. Returns a new f32 [S, D].
    Every placeholder is filled once and nothing else is: a count, width or position that does not match is a
    PromptError, never a row of zeros.
    """
    if token_embeds.ndim != 2 or len(token_embeds) != len(token_ids):
        raise PromptError(f"token_embeds {token_embeds.shape} for {len(token_ids)} tokens")
    result = np.array(token_embeds, dtype=np.float32, order="C")
    places = _checked_places(token_ids, image_embeds, slices, placeholder_id, result.shape[1])
    for rows, (start, stop) in zip(image_embeds, places, strict=True):
        result[start:stop] = rows
    return result


def place(
    token_ids: npt.NDArray[np.int64],
    image_embeds: Sequence[Embeds],
    slices: Sequence[slice],
    *,
    placeholder_id: int,
    width: int,
) -> PlacedIds:
    """The same for a decoder that looks the rows up on its device: which row stands where. Errors are those of `fuse`.

    width: D, of an embedding.
    """
    places = _checked_places(token_ids, image_embeds, slices, placeholder_id, width)
    ids = token_ids.astype(np.int32)
    order = sorted(range(len(places)), key=places.__getitem__)
    row = 0
    for index in order:
        start, stop = places[index]
        ids[start:stop] = -1 - np.arange(row, row + stop - start, dtype=np.int32)
        row += stop - start
    empty = np.empty((0, width), np.float32)
    images = np.concatenate([empty, *(image_embeds[index] for index in order)], dtype=np.float32)
    return PlacedIds(ids, images)


def _checked_places(
    token_ids: npt.NDArray[np.int64],
    image_embeds: Sequence[Embeds],
    slices: Sequence[slice],
    placeholder_id: int,
    width: int,
) -> list[tuple[int, int]]:
    """(start, stop) of each image: together all placeholders, each filled once by as many rows as there are."""
    length = len(token_ids)
    if len(image_embeds) != len(slices):
        raise PromptError(f"{len(image_embeds)} images for {len(slices)} places in the prompt")
    expected = token_ids == placeholder_id
    filled = np.zeros(length, np.bool_)
    places = []
    for index, (rows, where) in enumerate(zip(image_embeds, slices, strict=True)):
        start, stop = _bounds(where, length, index)
        if rows.shape != (stop - start, width):
            raise PromptError(f"image {index}: embeddings {rows.shape} for a place of {(stop - start, width)}")
        if filled[start:stop].any() or not expected[start:stop].all():
            raise PromptError(f"image {index}: positions {start}..{stop} are not free placeholders {placeholder_id}")
        filled[start:stop] = True
        places.append((start, stop))
    if not np.array_equal(filled, expected):
        position = int(np.flatnonzero(filled != expected)[0])
        raise PromptError(f"placeholder at position {position} of {length} has no image ({len(slices)} images)")
    return places


def _bounds(place: slice, length: int, index: int) -> tuple[int, int]:
    start, stop, step = place.start, place.stop, place.step
    if step not in (None, 1) or start is None or stop is None or not 0 <= start < stop <= length:
        raise PromptError(f"image {index}: {place} is not a place in a prompt of {length} tokens")
    return int(start), int(stop)
