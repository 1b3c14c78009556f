"""The token table in device memory: 16 bits a value, or 8 with a scale per row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kernels.arrays import DeviceArray, from_bf16, to_bf16
from runtime.decoder.cuda.plan import Rows, TableForm, table_rows
from runtime.decoder.cuda.shape import CudaDecoderFiles
from runtime.decoder.cuda.upload import Uploader
from runtime.decoder.token_table import TokenTable

Bytes = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]
I8_LEVELS = 127
BLOCK_BYTES = 8 << 20  # of f32 rows at once: a few copies of it are what loading takes of the host's memory


@dataclass(frozen=True, slots=True)
class TablePart:
    """Rows of the table from ``first_id`` on; ``scales`` f32 [rows] beside int8 rows."""

    rows: DeviceArray
    scales: DeviceArray | None
    first_id: int


def float_form(table: TokenTable) -> TableForm:
    """The 16-bit form that holds the file's values: f16, or bf16 for f32 values beyond what f16 holds exactly.

    Reads a table of f32 once from end to end, one of f16 not at all.
    """
    if table.dtype == np.float16:
        return "f16"
    narrow = exact = True
    for first in range(0, table.rows, _step(table)):
        rows = table.rows_between(first, min(first + _step(table), table.rows)).astype(np.float32, copy=False)
        with np.errstate(over="ignore"):
            narrow = narrow and bool((rows.astype(np.float16).astype(np.float32) == rows).all())
        exact = exact and bool((from_bf16(to_bf16(rows)) == rows).all())
        if not exact:
            break
    return "bf16" if exact and not narrow else "f16"


def load_table(
    files: CudaDecoderFiles, form: TableForm, table: TokenTable, arrays: Mapping[str, DeviceArray], uploader: Uploader
) -> None:
    """Fill the pieces of the table from its file."""
    for part, rows in enumerate(table_rows(files, form)):
        target = arrays[f"table.{part}"]
        stored = _StoredRows(table, form, rows)
        uploader.upload(target.ptr, target.nbytes, stored.fill, unit=stored.row_bytes)
        if form == "i8":
            target = arrays[f"table.{part}.scales"]
            uploader.upload(target.ptr, target.nbytes, stored.fill_scales)


class _StoredRows:
    """A run of the file's rows in the device's form, made as they are asked for; scales are kept until the end."""

    def __init__(self, table: TokenTable, form: TableForm, rows: Rows) -> None:
        self._table, self._form, self._rows = table, form, rows
        self.row_bytes = table.hidden * (1 if form == "i8" else 2)
        self._scales = np.empty(rows.count, np.float32)

    def fill(self, target: Bytes, offset: int) -> None:
        """Whole rows from byte ``offset`` of the run on, a bounded number at a time."""
        begin, count, step = offset // self.row_bytes, len(target) // self.row_bytes, _step(self._table)
        for at in range(0, count, step):
            end = min(at + step, count)
            first = self._rows.first + begin
            values = self._table.rows_between(first + at, first + end).astype(np.float32, copy=False)
            stored = target[at * self.row_bytes : end * self.row_bytes]
            if self._form == "i8":
                levels, self._scales[begin + at : begin + end] = quantize_rows(values)
                stored[:] = levels.view(np.uint8).reshape(-1)
            else:
                halves = to_bf16(values) if self._form == "bf16" else values.astype(np.float16)
                stored[:] = halves.view(np.uint8).reshape(-1)

    def fill_scales(self, target: Bytes, offset: int) -> None:
        """The scales of the rows that `fill` has made."""
        target[:] = self._scales.view(np.uint8)[offset : offset + len(target)]


def table_parts(files: CudaDecoderFiles, form: TableForm, arrays: Mapping[str, DeviceArray]) -> tuple[TablePart, ...]:
    """The pieces as launchers take them."""
    return tuple(
        TablePart(arrays[f"table.{part}"], arrays.get(f"table.{part}.scales"), rows.first)
        for part, rows in enumerate(table_rows(files, form))
    )


def quantize_rows(rows: F32) -> tuple[npt.NDArray[np.int8], F32]:
    """(levels i8 [n, H], scales f32 [n]) with row ≈ levels · scale, the largest value of a row at level ±127."""
    peak = np.abs(rows).max(axis=1)
    scales = np.where(peak > 0, peak / np.float32(I8_LEVELS), np.float32(1)).astype(np.float32)
    return np.rint(rows / scales[:, None]).astype(np.int8), scales


def device_values(rows: F32, form: TableForm) -> F32:
    """What the device's table holds for rows f32 [n, H] of the file."""
    if form == "i8":
        levels, scales = quantize_rows(rows)
        return levels.astype(np.float32) * scales[:, None]
    if form == "bf16":
        return from_bf16(to_bf16(rows))
    return rows.astype(np.float16).astype(np.float32)


def _step(table: TokenTable) -> int:
    return max(1, BLOCK_BYTES // (4 * table.hidden))
