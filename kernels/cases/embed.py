"""Known answers of the embedding kernels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from kernels.arrays import from_host_dtype, to_host_dtype
from kernels.cases.numbers import integers, uniform
from kernels.kernel import F64, Case
from kernels.launch.embed import embed_f16, embed_i8, fuse_image_text
from kernels.reference import embed as reference
from kernels.state import DECODE_STATE
from kernels.workbench import Workbench

TableDType = Literal["f16", "bf16", "i8"]
BEFORE = 7.5  # what rows hold that a launch must leave alone


def cases() -> Iterator[Case]:
    """Whole tables and pieces, tokens and image rows outside them, for every type of table."""
    dtypes: tuple[TableDType, ...] = ("f16", "bf16", "i8")
    for seed, dtype in enumerate(dtypes):
        yield embed_case(dtype, [4, -1, 0, 9], rows=10, width=8, seed=seed)
        yield embed_case(dtype, [4, 9, 10, 30, 29, 20, 19], rows=10, width=1032, seed=seed, first_id=10, vocab=30)
        yield fuse_case(dtype, [4, -1, -2, 0, -4], images=4, width=64, seed=seed)
        yield fuse_case(dtype, [10, -1, 9, -3], images=2, width=8, seed=seed)
        yield fuse_case(dtype, [3, -1], images=0, width=1040, seed=seed)


def embed_case(
    dtype: TableDType,
    tokens: list[int],
    *,
    rows: int,
    width: int,
    seed: int,
    first_id: int = 0,
    vocab: int | None = None,
) -> Case:
    """Look up the tokens of a step."""
    table, wide, scales = _table(dtype, rows, width, seed)
    before = np.full((len(tokens), width), BEFORE)

    def run(bench: Workbench) -> Mapping[str, npt.NDArray[Any]]:
        residual, state = bench.upload(before, "f32"), bench.upload(_state(tokens), "u8")
        held = bench.upload(table, dtype)
        to = (state, residual)
        if scales is None:
            embed_f16(bench.kernels, bench.stream, held, *to, first_id=first_id, vocab=vocab)
        else:
            by = bench.upload(scales, "f32")
            embed_i8(bench.kernels, bench.stream, held, by, *to, first_id=first_id, vocab=vocab)
        return {"rows": bench.download(residual), "status": _status(bench.download(state))}

    answer = reference.embed(wide, np.array(tokens), before, scales=scales, first_id=first_id, vocab=vocab)
    entry = "embed_i8" if dtype == "i8" else f"embed_f16_{dtype}"
    return _case("embed_i8" if dtype == "i8" else "embed_f16", entry, tokens, width, run, answer, dtype)


def fuse_case(dtype: TableDType, ids: list[int], *, images: int, width: int, seed: int) -> Case:
    """A prompt over a table of 10 rows and ``images`` image rows (0: none are handed over)."""
    table, wide, scales = _table(dtype, 10, width, seed)
    pictures = uniform(seed + 50, (images, width), -4.0, 4.0).astype(np.float32) if images else None
    before = np.full((len(ids), width), BEFORE)

    def run(bench: Workbench) -> Mapping[str, npt.NDArray[Any]]:
        out, state = bench.upload(before, "f32"), bench.upload(_state([]), "u8")
        fuse_image_text(
            bench.kernels,
            bench.stream,
            bench.upload(np.array(ids), "i32"),
            bench.upload(table, dtype),
            bench.upload(scales, "f32") if scales is not None else None,
            bench.upload(pictures, "f32") if pictures is not None else None,
            out,
            state,
        )
        return {"rows": bench.download(out), "status": _status(bench.download(state))}

    answer = reference.fuse_image_text(np.array(ids), wide, pictures, before, scales)
    return _case("fuse_image_text", f"fuse_image_text_{dtype}", ids, width, run, answer, dtype)


def _table(
    dtype: TableDType, rows: int, width: int, seed: int
) -> tuple[npt.NDArray[Any], F64, npt.NDArray[np.float32] | None]:
    """Return the table as it is uploaded, its values, and the scales of int8."""
    if dtype == "i8":
        whole = integers(seed, (rows, width), -128, 128).astype(np.int8)
        return whole, whole.astype(np.float64), uniform(seed + 9, (rows,), 0.001, 0.02).astype(np.float32)
    values = uniform(seed, (rows, width), -3.0, 3.0)
    return values, from_host_dtype(to_host_dtype(values, dtype), dtype).astype(np.float64), None


def _state(tokens: list[int]) -> npt.NDArray[np.uint8]:
    state = np.zeros(1, DECODE_STATE)
    state["token"][0, : len(tokens)] = tokens
    return state.view(np.uint8)


def _status(state: npt.NDArray[np.uint8]) -> npt.NDArray[np.int32]:
    status: npt.NDArray[np.int32] = state.view(DECODE_STATE)["status"]
    return status


def _case(
    symbol: str, entry: str, ids: list[int], width: int, run: Any, answer: tuple[F64, int], dtype: TableDType
) -> Case:
    """Rows are exact; an int8 value times its scale is rounded to f32 once, by half a unit of 2^-23."""
    rows, status = answer
    rounding = np.abs(rows) * 2.0**-24 if dtype == "i8" else np.zeros_like(rows)
    expected: dict[str, npt.NDArray[Any]] = {"rows": rows, "status": np.array([status], np.int32)}
    return Case(symbol, entry, f"{dtype} {ids} of width {width}", run, expected, {"rows": rounding})
