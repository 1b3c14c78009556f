"""The export matrix as a command: a line for each cell, a summary first in the file, an exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")

from scripts import export_matrix
from scripts.export_matrix import main

pytestmark = pytest.mark.torch
SERVED = "vila siglip one image linear"  # and with it linearclip, which is refused


def test_cells_that_are_asked_for_are_run_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "results" / "matrix.jsonl"
    assert main(["--only", SERVED, "--out", str(out)]) == 0
    summary, *lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert (summary["cells"], summary["served"], summary["ok"]) == (2, 1, True)
    served, refused = lines
    assert 0 < served["embeds_error"] <= summary["largest_error"] <= summary["limit"] == 1e-5
    assert refused["refused"] == "mm_projector_type is 'linearclip'"
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_cell_beyond_the_limit_and_no_cell_at_all_are_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_matrix, "LIMIT", 1e-12)
    assert main(["--only", SERVED + "clip"]) == 0, "a refusal has no error"
    assert main(["--only", SERVED]) == 1
    assert main(["--only", "no such cell"]) == 1
