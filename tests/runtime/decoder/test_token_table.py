"""Rows of the token table, read one by one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from runtime.decoder.token_table import TokenTable
from runtime.errors import BundleError, EngineError, PromptError


@pytest.fixture
def stored() -> np.ndarray:
    return np.random.default_rng(0).normal(0, 1, (10, 6)).astype(np.float16)


def test_rows_are_the_stored_values_as_f32(tmp_path: Path, stored: np.ndarray) -> None:
    path = tmp_path / "table.bin"
    path.write_bytes(stored.tobytes())
    table = TokenTable(path, "f16", (10, 6))
    rows = table.lookup([9, 0, 9])
    assert rows.dtype == np.float32
    assert np.array_equal(rows, stored[[9, 0, 9]].astype(np.float32))
    rows[:] = 0  # a copy: the table keeps its values
    assert np.array_equal(table.lookup([9])[0], stored[9].astype(np.float32))
    table.close()
    table.close()


def test_f32_tables_are_read_too(tmp_path: Path, stored: np.ndarray) -> None:
    path = tmp_path / "table.bin"
    path.write_bytes(stored.astype(np.float32).tobytes())
    table = TokenTable(path, "f32", (10, 6))
    assert np.array_equal(table.lookup(np.arange(10)), stored.astype(np.float32))


def test_a_run_of_rows_is_read_as_it_is_stored(tmp_path: Path, stored: np.ndarray) -> None:
    path = tmp_path / "table.bin"
    path.write_bytes(stored.tobytes())
    table = TokenTable(path, "f16", (10, 6))
    assert np.array_equal(table.rows_between(3, 7), stored[3:7]) and table.dtype == np.float16
    path.write_bytes(stored[:5].tobytes())
    with pytest.raises(EngineError, match=r"ends inside rows 3\.\.7"):
        table.rows_between(3, 7)


@pytest.mark.parametrize("ids", [[-1], [10], [0, 3, 11]])
def test_ids_outside_the_table_are_named(tmp_path: Path, stored: np.ndarray, ids: list[int]) -> None:
    path = tmp_path / "table.bin"
    path.write_bytes(stored.tobytes())
    with pytest.raises(PromptError, match=f"token id {ids[-1]} is outside the table of 10 rows"):
        TokenTable(path, "f16", (10, 6)).lookup(ids)


@pytest.mark.parametrize("size", [0, 119, 121])
def test_a_file_of_another_size_is_refused(tmp_path: Path, size: int) -> None:
    path = tmp_path / "table.bin"
    path.write_bytes(bytes(size))
    with pytest.raises(BundleError, match=r"table\.bin"):
        TokenTable(path, "f16", (10, 6))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="cannot be opened"):
        TokenTable(tmp_path / "none.bin", "f16", (10, 6))


def test_a_table_that_is_cut_short_while_it_is_open_is_an_error(tmp_path: Path, stored: np.ndarray) -> None:
    path = tmp_path / "table.bin"
    path.write_bytes(stored.tobytes())
    table = TokenTable(path, "f16", (10, 6))
    with path.open("r+b") as file:
        file.truncate(60)
    table.lookup([4])
    with pytest.raises(EngineError, match="ends inside row 5"):
        table.lookup([5])
    table.close()
