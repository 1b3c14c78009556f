"""Launches the lookup of embeddings: the tokens of a step, and a prompt with pictures in it (csrc/embed.cu)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from kernels.arrays import DeviceArray, DType, check_array
from kernels.driver.protocol import Dim3, Stream
from kernels.errors import ArrayError
from kernels.kernel import Kernel
from kernels.launch.kv import check_state
from kernels.launch.products import pointer
from kernels.reference import embed as reference
from kernels.state import MAX_STEP_TOKENS

if TYPE_CHECKING:
    from kernels.loading import Kernels

THREADS = 128
VALUES_PER_THREAD = 8  # also what a width must be a multiple of


def embed_f16(
    kernels: Kernels,
    stream: Stream,
    table: DeviceArray,
    state: DeviceArray,
    residual: DeviceArray,
    *,
    first_id: int = 0,
    vocab: int | None = None,
) -> None:
    """Write the table's row of state.token[m] to row m of the residual stream.

    table f16 or bf16 [rows, H]; state u8 [64]; residual f32 [M, H], M 1..8; H a multiple of 8. The table may be a piece
    of a larger one: its rows are ids first_id .. first_id+rows-1 of ``vocab`` (None: first_id+rows), and tokens of
    other pieces are left to the launches for those. An id outside 0..vocab-1 sets STATUS_BAD_TOKEN in state.status
    and leaves its row as it is: the host must look. Raises ArrayError.
    """
    piece = _check_piece(table, ("f16", "bf16"), first_id, vocab)
    _embed(kernels, stream, f"embed_f16_{table.dtype}", table, None, piece, state, residual)


def embed_i8(
    kernels: Kernels,
    stream: Stream,
    table: DeviceArray,
    scales: DeviceArray,
    state: DeviceArray,
    residual: DeviceArray,
    *,
    first_id: int = 0,
    vocab: int | None = None,
) -> None:
    """As :func:`embed_f16` from int8 rows: table i8 [rows, H] times scales f32 [rows]."""
    piece = _check_piece(table, ("i8",), first_id, vocab)
    _embed(kernels, stream, "embed_i8", table, scales, piece, state, residual)


def fuse_image_text(
    kernels: Kernels,
    stream: Stream,
    ids: DeviceArray,
    table: DeviceArray,
    scales: DeviceArray | None,
    images: DeviceArray | None,
    out: DeviceArray,
    state: DeviceArray,
    *,
    first_id: int = 0,
    vocab: int | None = None,
) -> None:
    """Write a prompt's embeddings: token rows, with rows of pictures where they stand.

    ids i32 [S]: a token, or -1 - j for row j of images f32 [R, H] (None: no pictures). table f16, bf16 or i8
    [rows, H] with scales f32 [rows] for i8, else None; pieces as in :func:`embed_f16`, each launch also writes the
    pictures' rows. out f32 [S, H]. A token outside the vocabulary sets STATUS_BAD_TOKEN, a row outside the pictures
    STATUS_BAD_IMAGE_ROW, and its row of out is left as it is; :func:`check_ids` tells beforehand. Raises ArrayError.
    """
    piece = _check_piece(table, ("f16", "bf16", "i8"), first_id, vocab)
    rows, width = table.shape
    _check_scales(table, scales, rows)
    check_array("ids", ids, "i32", (None,), alignment=4)
    check_array("out", out, "f32", (ids.shape[0], width))
    check_state(state)
    if images is not None:
        check_array("images", images, "f32", (None, width))
    pictures = (images.ptr, images.shape[0]) if images is not None else (0, 0)
    kernels.launch(
        f"fuse_image_text_{table.dtype}",
        _grid(ids.shape[0], width),
        (THREADS, 1, 1),
        0,
        stream,
        "PPPiiiPiPPi",
        *(ids.ptr, table.ptr, pointer(scales), *piece, *pictures, out.ptr, state.ptr, width),
    )


def check_ids(ids: npt.NDArray[np.int32], *, vocab: int, image_rows: int) -> None:
    """Refuse on the host what :func:`fuse_image_text` would report: ArrayError with the position, the id and the limit.

    Every row of the pictures must stand in the prompt exactly once.
    """
    tokens, rows = ids[ids >= 0], -1 - ids[ids < 0].astype(np.int64)
    if tokens.size and int(tokens.max()) >= vocab:
        position = int(np.flatnonzero(ids >= vocab)[0])
        raise ArrayError(f"ids[{position}] is token {ids[position]}, the table has {vocab}")
    if rows.size and int(rows.max()) >= image_rows:
        position = int(np.flatnonzero(ids < -image_rows)[0])
        raise ArrayError(f"ids[{position}] is image row {-1 - int(ids[position])}, there are {image_rows}")
    times = np.bincount(rows, minlength=image_rows)
    if not np.all(times == 1):
        row = int(np.flatnonzero(times != 1)[0])
        raise ArrayError(f"image row {row} of {image_rows} stands {times[row]} times in the prompt, expected once")


def _embed(
    kernels: Kernels,
    stream: Stream,
    entry: str,
    table: DeviceArray,
    scales: DeviceArray | None,
    piece: tuple[int, int, int],
    state: DeviceArray,
    residual: DeviceArray,
) -> None:
    rows, width = table.shape
    _check_scales(table, scales, rows)
    check_array("residual", residual, "f32", (None, width))
    check_state(state)
    tokens = residual.shape[0]
    if tokens > MAX_STEP_TOKENS:
        raise ArrayError(f"residual has {tokens} rows, a step has at most {MAX_STEP_TOKENS} tokens")
    kernels.launch(
        entry,
        _grid(tokens, width),
        (THREADS, 1, 1),
        0,
        stream,
        "PPiiiPPi",
        *(table.ptr, pointer(scales), *piece, state.ptr, residual.ptr, width),
    )


def _check_piece(
    table: DeviceArray, dtypes: tuple[DType, ...], first_id: int, vocab: int | None
) -> tuple[int, int, int]:
    """Return (first id, rows, size of the whole vocabulary)."""
    check_array("table", table, dtypes, (None, None))
    rows, width = table.shape
    if width % VALUES_PER_THREAD:
        raise ArrayError(f"table has rows of {width}, expected a multiple of {VALUES_PER_THREAD}")
    whole = first_id + rows if vocab is None else vocab
    if first_id < 0 or first_id + rows > whole:
        raise ArrayError(f"table holds ids {first_id}..{first_id + rows - 1} of a vocabulary of {whole}")
    return first_id, rows, whole


def _check_scales(table: DeviceArray, scales: DeviceArray | None, rows: int) -> None:
    if (table.dtype == "i8") != (scales is not None):
        raise ArrayError(f"a table of {table.dtype} {'needs' if scales is None else 'takes no'} scales")
    if scales is not None:
        check_array("scales", scales, "f32", (rows,), alignment=4)


def _grid(rows: int, width: int) -> Dim3:
    return rows, -(-width // (THREADS * VALUES_PER_THREAD)), 1


KERNELS = (
    Kernel("embed_f16", "embed.cu", ("embed_f16_f16", "embed_f16_bf16"), embed_f16, reference.embed),
    Kernel("embed_i8", "embed.cu", ("embed_i8",), embed_i8, reference.embed),
    Kernel(
        "fuse_image_text",
        "embed.cu",
        ("fuse_image_text_f16", "fuse_image_text_bf16", "fuse_image_text_i8"),
        fuse_image_text,
        reference.fuse_image_text,
    ),
)
