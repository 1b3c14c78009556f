"""Embeddings on the emulator: exact rows, pieces of a table, what stands outside it, refusals."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from kernels.arrays import DType
from kernels.cases.embed import cases, embed_case, fuse_case
from kernels.errors import ArrayError
from kernels.kernel import Case
from kernels.launch.embed import KERNELS, check_ids, embed_f16, embed_i8, fuse_image_text
from kernels.loading import Kernels
from kernels.selftest.running import run_case
from kernels.state import DECODE_STATE, STATUS_BAD_IMAGE_ROW, STATUS_BAD_TOKEN
from kernels.workbench import Workbench

CASES = list(cases())
DTYPES: tuple[DType, ...] = ("f16", "bf16", "i8")


@pytest.mark.usefixtures("schedule")
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.entry} {case.name}")
def test_rows_are_exact_in_every_schedule(kernels: Kernels, case: Case) -> None:
    assert run_case(kernels, case) <= 1.0
    assert kernels.launched == {case.entry: 1}


def test_the_cases_cover_every_entry() -> None:
    assert {case.entry for case in CASES} == {entry for kernel in KERNELS for entry in kernel.entries}


@pytest.mark.parametrize("width", [8, 1016, 1024, 1032, 3584])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_width_of_eight_is_copied_whole(kernels: Kernels, dtype: DType, width: int) -> None:
    assert run_case(kernels, embed_case(dtype, list(range(8)), rows=8, width=width, seed=width)) <= 1.0
    assert run_case(kernels, fuse_case(dtype, [-2, 9, -1, 0], images=2, width=width, seed=width)) <= 1.0


def test_every_row_of_a_table_is_found_through_its_pieces(bench: Workbench) -> None:
    table = np.arange(30 * 8).reshape(30, 8)
    pieces = [(start, bench.upload(table[start : start + size], "f16")) for start, size in ((0, 7), (7, 13), (20, 10))]
    for first in range(0, 30, 6):
        tokens = np.arange(first, first + 6)
        state, residual = bench.upload(state_of(tokens), "u8"), bench.empty((6, 8), "f32")
        for start, piece in pieces:
            embed_f16(bench.kernels, bench.stream, piece, state, residual, first_id=start, vocab=30)
        assert np.array_equal(bench.download(residual), table[tokens])
        assert status_of(bench.download(state)) == 0


def test_a_long_prompt_is_fused_row_by_row(bench: Workbench) -> None:
    rng = np.random.default_rng(1)
    table, images = rng.integers(-100, 100, (50, 16)), rng.standard_normal((40, 16)).astype(np.float32)
    ids = rng.integers(0, 50, 300)
    ids[100:140] = -1 - np.arange(40)
    out, state = bench.empty((300, 16), "f32"), bench.upload(state_of([]), "u8")
    arrays = [bench.upload(ids, "i32"), bench.upload(table, "bf16"), None, bench.upload(images, "f32"), out, state]
    fuse_image_text(bench.kernels, bench.stream, *arrays)
    expected = np.where((ids >= 0)[:, None], table[np.maximum(ids, 0)], images[np.maximum(-1 - ids, 0) % 40])
    assert np.array_equal(bench.download(out), expected)


def test_an_id_outside_sets_its_bit_and_no_other_and_never_a_row_of_zeros(bench: Workbench) -> None:
    table, images = bench.upload(np.ones((4, 8)), "f16"), bench.upload(np.ones((2, 8)), "f32")
    for ids, bit in (([4], STATUS_BAD_TOKEN), ([-3], STATUS_BAD_IMAGE_ROW), ([4, -3], 1 | 8), ([0, -2], 0)):
        out, state = bench.empty((len(ids), 8), "f32"), bench.upload(state_of([]), "u8")
        before = bench.download(out)
        fuse_image_text(bench.kernels, bench.stream, bench.upload(ids, "i32"), table, None, images, out, state)
        assert status_of(bench.download(state)) == bit
        rows = bench.download(out)
        assert bit == 0 or np.array_equal(rows, before, equal_nan=True)
        assert bit != 0 or (rows == 1.0).all()


def test_ids_are_checked_on_the_host() -> None:
    check_ids(np.array([3, -1, -2, 0], np.int32), vocab=4, image_rows=2)
    check_ids(np.array([], np.int32), vocab=4, image_rows=0)
    for ids, rows, message in (
        ([0, 4], 0, r"ids\[1\] is token 4, the table has 4"),
        ([0, -1, -3], 2, r"ids\[2\] is image row 2, there are 2"),
        ([-1, -1], 1, "image row 0 of 1 stands 2 times"),
        ([-1], 2, "image row 1 of 2 stands 0 times"),
        ([-(2**31)], 1, "image row 2147483647"),
    ):
        with pytest.raises(ArrayError, match=message):
            check_ids(np.array(ids, np.int32), vocab=4, image_rows=rows)


def test_what_the_kernels_cannot_take_is_refused(bench: Workbench) -> None:
    kernels, stream = bench.kernels, bench.stream
    table, state, rows = bench.empty((4, 8), "f16"), bench.upload(state_of([]), "u8"), bench.empty((2, 8), "f32")
    ids, scales, whole = bench.empty((2,), "i32"), bench.empty((4,), "f32"), bench.empty((4, 8), "i8")
    refused = [
        (lambda: embed_f16(kernels, stream, whole, state, rows), "table is i8"),
        (lambda: embed_f16(kernels, stream, bench.empty((4, 12), "f16"), state, rows), "rows of 12"),
        (lambda: embed_f16(kernels, stream, replace(table, shape=(0, 8)), state, rows), "table has the shape"),
        (lambda: embed_f16(kernels, stream, replace(table, ptr=table.ptr + 2), state, rows), "table lies at"),
        (lambda: embed_f16(kernels, stream, table, rows, rows), "state is f32"),
        (lambda: embed_f16(kernels, stream, table, state, bench.empty((9, 8), "f32")), "at most 8 tokens"),
        (lambda: embed_f16(kernels, stream, table, state, bench.empty((2, 16), "f32")), "residual has the shape"),
        (lambda: embed_f16(kernels, stream, table, state, rows, first_id=3, vocab=6), "ids 3..6 of a vocabulary of 6"),
        (lambda: embed_f16(kernels, stream, table, state, rows, first_id=-1), "ids -1..2"),
        (lambda: embed_i8(kernels, stream, table, scales, state, rows), "table is f16"),
        (lambda: embed_i8(kernels, stream, whole, bench.empty((3,), "f32"), state, rows), "scales has the shape"),
        (lambda: fuse_image_text(kernels, stream, ids, whole, None, None, rows, state), "needs scales"),
        (lambda: fuse_image_text(kernels, stream, ids, table, scales, None, rows, state), "takes no scales"),
        (lambda: fuse_image_text(kernels, stream, scales, table, None, None, rows, state), "ids is f32"),
        (lambda: fuse_image_text(kernels, stream, ids, table, None, rows, scales, state), "out has the shape"),
        (
            lambda: fuse_image_text(kernels, stream, ids, table, None, bench.empty((2, 16), "f32"), rows, state),
            "images has the shape",
        ),
    ]
    for call, message in refused:
        with pytest.raises(ArrayError, match=message):
            call()
    assert not kernels.launched


def state_of(tokens: object) -> np.ndarray:
    state = np.zeros(1, DECODE_STATE)
    state["token"][0, : len(tokens)] = tokens
    return state.view(np.uint8)


def status_of(state: np.ndarray) -> int:
    return int(state.view(DECODE_STATE)["status"][0])
