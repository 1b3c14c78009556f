"""Lookup of embeddings in numpy; the kernel's results are these exactly, rounded once to f32 for int8 tables."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from kernels.kernel import F64
from kernels.state import STATUS_BAD_IMAGE_ROW, STATUS_BAD_TOKEN


def embed(
    table: npt.NDArray[Any],
    tokens: npt.NDArray[np.integer],
    before: npt.NDArray[np.floating],
    *,
    scales: npt.NDArray[np.floating] | None = None,
    first_id: int = 0,
    vocab: int | None = None,
) -> tuple[F64, int]:
    """Rows f64 [M, H] of a table [rows, H] for tokens [M], and the status bits.

    ``before`` [M, H] is what rows keep whose token is outside the table.
    """
    return fuse_image_text(
        np.where(tokens < 0, np.iinfo(np.int32).max, tokens), table, None, before, scales, first_id, vocab
    )


def fuse_image_text(
    ids: npt.NDArray[np.integer],
    table: npt.NDArray[Any],
    images: npt.NDArray[np.floating] | None,
    before: npt.NDArray[np.floating],
    scales: npt.NDArray[np.floating] | None = None,
    first_id: int = 0,
    vocab: int | None = None,
) -> tuple[F64, int]:
    """Rows f64 [S, H] for ids [S] (a token, or -1 - j for row j of the images), and the status bits."""
    rows = table.astype(np.float64)
    if scales is not None:
        rows = rows * scales.astype(np.float64)[:, None]
    limit = first_id + len(table) if vocab is None else vocab
    out, status = before.astype(np.float64), 0
    for position, value in enumerate(ids.tolist()):
        if value < 0 and (images is None or -1 - value >= len(images)):
            status |= STATUS_BAD_IMAGE_ROW
        elif value < 0 and images is not None:
            out[position] = images[-1 - value]
        elif value >= limit:
            status |= STATUS_BAD_TOKEN
        elif first_id <= value < first_id + len(table):
            out[position] = rows[value - first_id]
    return out, status
