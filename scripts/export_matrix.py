#!/usr/bin/env python3
"""Export every cell of the export matrix and compare its graphs with torch: one JSON line a cell.

    python scripts/export_matrix.py [--out scripts/bench/results/export_matrix.jsonl] [--only siglip] [--each]

Each cell is a tiny checkpoint with random weights. What the exporter refuses stands there with its reason. A graph that
several cells share is traced once, with --each for every cell anew. The exit code is 1 when a graph differs from torch
by more than the limit, or a refusal is not the expected one.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from export.checkpoint import read_checkpoint  # noqa: E402
from runtime.errors import ExportError  # noqa: E402
from scripts.bench.record import environment  # noqa: E402
from tests.export.vision.matrix import CELLS, LIMIT, Cell, Graphs, measure  # noqa: E402


def run_cell(cell: Cell, graphs: Graphs) -> dict[str, Any]:
    """What became of a cell: errors relative to the largest value and grids, or the reason of its refusal."""
    began = time.perf_counter()
    root = graphs.checkpoint(cell)
    line: dict[str, Any] = {"layout": cell.layout, "tower": cell.tower, "view": cell.view, "projector": cell.kind}
    try:
        read_checkpoint(root)
    except ExportError as problem:
        reason = problem.message.split(": ", 1)[1]
        return {**line, "refused": reason, "ok": bool(cell.refused) and cell.refused in problem.message}
    found = measure(root, graphs.tower(cell), graphs.projector(cell))
    errors = {"tower_error": found.tower_error, "embeds_error": found.embeds_error}
    ok = not cell.refused and max(errors.values()) <= LIMIT
    return {**line, **errors, "grids": found.grids, "seconds": round(time.perf_counter() - began, 1), "ok": ok}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the cells that are asked for, print a line each, and write them all when every one was run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="file for the JSON lines, replaced; by default they are printed alone")
    parser.add_argument("--only", default="", help="only cells whose name holds this text")
    parser.add_argument("--each", action="store_true", help="trace both graphs for every cell by itself")
    options = parser.parse_args(arguments)
    lines = []
    with tempfile.TemporaryDirectory(prefix="vlm-matrix-") as folder:
        graphs = Graphs(Path(folder), each=options.each)
        for cell in [cell for cell in CELLS if options.only in str(cell)]:
            lines.append(run_cell(cell, graphs))
            sys.stdout.write(json.dumps(lines[-1], ensure_ascii=False) + "\n")
            sys.stdout.flush()
    summary = {
        "bench": "export_matrix",
        "graphs": "each cell's own" if options.each else "shared by cells",
        "cells": len(lines),
        "served": sum("refused" not in line for line in lines),
        "limit": LIMIT,
        "largest_error": max((line.get("embeds_error", 0.0) for line in lines), default=0.0),
        "ok": all(line["ok"] for line in lines),
        **environment(),
    }
    sys.stdout.write(json.dumps(summary, ensure_ascii=False) + "\n")
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in [summary, *lines])
        options.out.write_text(text, encoding="utf-8")
    return 0 if summary["ok"] and lines else 1


if __name__ == "__main__":
    raise SystemExit(main())
