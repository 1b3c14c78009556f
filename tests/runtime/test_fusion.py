"""Fusion against a position-by-position loop, and every mismatch that is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import PromptError
from runtime.fusion import PlacedIds, fuse, place

IMAGE = 9
WIDTH = 5


def by_hand(ids: list[int], tokens: np.ndarray, images: list[np.ndarray]) -> np.ndarray:
    """Walks the prompt and takes the next row of the images at each placeholder."""
    queue = [row for image in images for row in image]
    return np.stack([queue.pop(0) if token == IMAGE else tokens[i] for i, token in enumerate(ids)])


@settings(deadline=None, max_examples=100)
@given(
    parts=st.lists(st.one_of(st.integers(0, 8), st.tuples(st.integers(1, 6))), min_size=1, max_size=12),
    seed=st.integers(0, 99),
)
def test_fused_rows_equal_a_loop_over_positions(parts: list[int | tuple[int]], seed: int) -> None:
    rng = np.random.default_rng(seed)
    ids: list[int] = []
    slices: list[slice] = []
    images: list[np.ndarray] = []
    for part in parts:
        if isinstance(part, tuple):
            slices.append(slice(len(ids), len(ids) + part[0]))
            images.append(rng.normal(size=(part[0], WIDTH)).astype(np.float32))
            ids += [IMAGE] * part[0]
        else:
            ids.append(part)
    tokens = rng.normal(size=(len(ids), WIDTH)).astype(np.float32)
    before = tokens.copy()
    fused = fuse(np.array(ids), tokens, images, slices, placeholder_id=IMAGE)
    np.testing.assert_array_equal(fused, by_hand(ids, tokens, images))
    np.testing.assert_array_equal(tokens, before)
    assert fused.dtype == np.float32
    placed = place(np.array(ids), images, slices, placeholder_id=IMAGE, width=WIDTH)
    np.testing.assert_array_equal(looked_up(placed, tokens), fused)
    for cut in range(len(ids) + 1):  # parts have the rows that stand in them
        both = [placed.part(0, cut), placed.part(cut, len(ids))]
        rows = np.concatenate([looked_up(both[0], tokens[:cut]), looked_up(both[1], tokens[cut:])])
        np.testing.assert_array_equal(rows, fused)
        assert sum(len(part.images) for part in both) == len(placed.images)


def looked_up(placed: PlacedIds, tokens: np.ndarray) -> np.ndarray:
    """What a decoder makes of ids and image rows; every row is there once, in the order of the prompt."""
    shown = placed.ids < 0
    assert placed.ids.dtype == np.int32 and (-1 - placed.ids[shown]).tolist() == list(range(len(placed.images)))
    found = tokens.copy()
    found[shown] = placed.images
    return found


def rows(count: int, width: int = WIDTH) -> np.ndarray:
    return np.ones((count, width), np.float32)


IDS = np.array([1, 9, 9, 2, 9, 3])
PLACES = [slice(1, 3), slice(4, 5)]


@pytest.mark.parametrize(
    ("images", "places", "message"),
    [
        ([rows(2)], PLACES, "1 images for 2 places"),
        ([rows(2)], PLACES[:1], "placeholder at position 4 of 6 has no image"),
        ([], [], "placeholder at position 1 of 6"),
        ([rows(3), rows(1)], PLACES, "image 0: embeddings"),
        ([rows(2), rows(1, 4)], PLACES, "image 1: embeddings"),
        ([rows(2), rows(2)], [slice(1, 3), slice(4, 6)], "image 1: positions 4..6"),
        ([rows(2), rows(2)], [slice(1, 3), slice(1, 3)], "image 1: positions 1..3"),
        ([rows(2), rows(1)], [slice(1, 3), slice(6, 7)], "not a place in a prompt of 6"),
        ([rows(2), rows(1)], [slice(1, 3), slice(-2, -1)], "not a place"),
        ([rows(2), rows(0)], [slice(1, 3), slice(4, 4)], "not a place"),
    ],
)
def test_every_mismatch_of_images_and_places_is_refused(images: list, places: list, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        fuse(IDS, rows(6), images, places, placeholder_id=IMAGE)
    with pytest.raises(PromptError, match=message):
        place(IDS, images, places, placeholder_id=IMAGE, width=WIDTH)


def test_images_that_stand_in_another_order_keep_their_places() -> None:
    placed = place(IDS, [rows(1), 2 * rows(2)], PLACES[::-1], placeholder_id=IMAGE, width=WIDTH)
    assert placed.ids.tolist() == [1, -1, -2, 2, -3, 3]
    assert placed.images[:, 0].tolist() == [2, 2, 1]


def test_token_rows_of_another_count_are_refused() -> None:
    with pytest.raises(PromptError, match="for 6 tokens"):
        fuse(IDS, rows(5), [rows(2), rows(1)], PLACES, placeholder_id=IMAGE)
