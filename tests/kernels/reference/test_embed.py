"""The references of the embeddings, against plain indexing."""

from __future__ import annotations

import numpy as np

from kernels.reference.embed import embed, fuse_image_text
from kernels.state import STATUS_BAD_IMAGE_ROW, STATUS_BAD_TOKEN


def test_rows_are_those_of_the_table_times_their_scales() -> None:
    table, scales = np.arange(12).reshape(4, 3), np.array([1.0, 2.0, 0.5, -1.0])
    rows, status = embed(table, np.array([2, 0, 3]), np.zeros((3, 3)), scales=scales)
    assert np.array_equal(rows, [[3.0, 3.5, 4.0], [0.0, 1.0, 2.0], [-9.0, -10.0, -11.0]])
    assert status == 0


def test_a_piece_leaves_other_rows_alone_and_names_only_ids_outside_the_whole() -> None:
    before = np.full((4, 2), 9.0)
    table = np.array([[1.0, 2.0], [3.0, 4.0]])
    rows, status = embed(table, np.array([4, 5, 6, 3]), before, first_id=4, vocab=7)
    assert np.array_equal(rows, [[1.0, 2.0], [3.0, 4.0], [9.0, 9.0], [9.0, 9.0]])
    assert status == 0
    assert embed(table, np.array([7]), before[:1], first_id=4, vocab=7)[1] == STATUS_BAD_TOKEN
    assert embed(table, np.array([-1]), before[:1], first_id=4, vocab=7)[1] == STATUS_BAD_TOKEN


def test_negative_ids_are_rows_of_the_pictures() -> None:
    table, images = np.ones((2, 2)), np.array([[5.0, 6.0], [7.0, 8.0]])
    rows, status = fuse_image_text(np.array([-2, 1, -1, -3]), table, images, np.zeros((4, 2)))
    assert np.array_equal(rows, [[7.0, 8.0], [1.0, 1.0], [5.0, 6.0], [0.0, 0.0]])
    assert status == STATUS_BAD_IMAGE_ROW
    assert fuse_image_text(np.array([-1]), table, None, np.zeros((1, 2)))[1] == STATUS_BAD_IMAGE_ROW
