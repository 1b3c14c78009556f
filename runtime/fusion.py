"""Put the image embeddings where the prompt has their placeholders. Called by the pipeline; numpy alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from runtime.errors import PromptError

Embeds = npt.NDArray[np.float32]


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
    length = len(token_ids)
    if token_embeds.ndim != 2 or len(token_embeds) != length:
        raise PromptError(f"token_embeds {token_embeds.shape} for {length} tokens")
    if len(image_embeds) != len(slices):
        raise PromptError(f"{len(image_embeds)} images for {len(slices)} places in the prompt")
    result = np.array(token_embeds, dtype=np.float32, order="C")
    expected = token_ids == placeholder_id
    filled = np.zeros(length, np.bool_)
    for index, (rows, place) in enumerate(zip(image_embeds, slices, strict=True)):
        start, stop = _bounds(place, length, index)
        if rows.shape != (stop - start, result.shape[1]):
            place_shape = (stop - start, result.shape[1])
            raise PromptError(f"image {index}: embeddings {rows.shape} for a place of {place_shape}")
        if filled[start:stop].any() or not expected[start:stop].all():
            raise PromptError(f"image {index}: positions {start}..{stop} are not free placeholders {placeholder_id}")
        filled[start:stop] = True
        result[start:stop] = rows
    if not np.array_equal(filled, expected):
        position = int(np.flatnonzero(filled != expected)[0])
        raise PromptError(f"placeholder at position {position} of {length} has no image ({len(slices)} images)")
    return result


def _bounds(place: slice, length: int, index: int) -> tuple[int, int]:
    start, stop, step = place.start, place.stop, place.step
    if step not in (None, 1) or start is None or stop is None or not 0 <= start < stop <= length:
        raise PromptError(f"image {index}: {place} is not a place in a prompt of {length} tokens")
    return int(start), int(stop)
