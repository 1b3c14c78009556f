#!/usr/bin/env python3
"""Microseconds, GB/s and the fraction of the memory's own rate for every kernel on the shapes of the four models.

    python scripts/bench/kernels.py --out kernels.jsonl                      # on a GPU; torch, where it is, for cuBLAS
    python scripts/bench/kernels.py --marlin DIR --llm-awq DIR               # beside checkouts that are built there
    python scripts/bench/kernels.py --device emulator --quick                # shows that every row runs; no speed

A row is a graph of 50 launches over copies of the weights that together exceed four times the L2 cache, between two
events, 21 times; rivals take turns with ours. The first line has the ceilings of this very process: reading, copying,
an empty kernel. JSON lines on stdout. This script has not run on a GPU yet.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from kernels.arrays import Activation  # noqa: E402
from kernels.errors import KernelError, OutOfMemoryError  # noqa: E402
from kernels.loading import Kernels  # noqa: E402
from kernels.registry import KERNELS  # noqa: E402
from kernels.workbench import Workbench  # noqa: E402
from scripts.bench.device_timing import (  # noqa: E402
    QUICK,
    Effort,
    capture,
    ceilings,
    facts,
    interleaved_us,
    open_bench_device,
    spread,
)
from scripts.bench.kernel_data import Benchmark, Lab  # noqa: E402
from scripts.bench.kernel_rivals import OWN, Rivals, find_rivals  # noqa: E402
from scripts.bench.kernel_rows import Sizes, benchmarks, quick  # noqa: E402
from scripts.bench.record import environment, write_line  # noqa: E402
from scripts.bench.shapes import MODELS  # noqa: E402

Row = dict[str, Any]
CHOICE_TOKENS = range(256, 2049)  # where the better of own kernel and dequantise + cuBLAS is taken


def measure(
    kernels: Kernels, row: Benchmark, effort: Effort, dtype: Activation, rivals: Rivals
) -> dict[str, list[float]]:
    """Microseconds per launch of ours and of every rival for the same product, in turn. Raises KernelError."""
    device = kernels.device
    with Workbench(kernels) as bench:
        lab = Lab(bench, effort, dtype)
        graph = capture(device, bench.stream, row.prepare(lab), effort.launches)
        try:
            replays = {OWN: lambda: graph.launch(bench.stream)}
            replays |= rivals.replays(row, bench, lab, effort)
            return interleaved_us(device, bench.stream, replays, effort)
        finally:
            graph.close()


def line_of(row: Benchmark, taken: dict[str, list[float]], ceiling: dict[str, float]) -> Row:
    """The figures of a row, with the ratio of each rival's median to ours."""
    us = spread(taken[OWN])
    seconds = us["median"] / 1e6
    line: Row = {"symbol": row.symbol, "model": row.model, **row.sizes, "us": us, "bytes": row.bytes}
    if seconds:
        line["gb_s"] = round(row.bytes / seconds / 1e9, 1)
        line["read_fraction"] = round(row.bytes / seconds / 1e9 / ceiling["read_gb_s"], 3)
        line["tflops"] = round(row.operations / seconds / 1e12, 2) if row.operations else None
    for name, values in taken.items():
        if name != OWN:
            rival = spread(values)
            line[name] = {"us": rival, "times_ours": round(rival["median"] / us["median"], 3) if seconds else None}
    return line


def choice_of(line: Row) -> Row | None:
    """For a prefill product that was measured both ways: which is faster."""
    other = line.get("dequantize_cublas_f16")
    if other is None or line.get("m") not in CHOICE_TOKENS:
        return None
    return {
        "kind": "prefill_choice",
        "symbol": line["symbol"],
        **{key: line[key] for key in ("model", "n", "k", "m")},
        "own_us": line["us"]["median"],
        "dequantize_cublas_us": other["us"]["median"],
        "better": OWN if other["times_ours"] is None or other["times_ours"] >= 1 else "dequantize_cublas_f16",
    }


def lines(options: argparse.Namespace, kernels: Kernels, effort: Effort) -> Iterator[Row]:
    """The ceilings, then a line per row, and one more where a choice is measured."""
    ceiling = ceilings(kernels, effort)
    yield {"kind": "ceilings", **{name: round(value, 3) for name, value in ceiling.items()}}
    symbols = tuple(options.symbol)
    models = tuple(model for model in MODELS if not options.model or model.name in options.model)
    rows = quick(symbols) if options.quick else benchmarks(models, Sizes(), symbols)
    with find_rivals(kernels.device, options.marlin, options.llm_awq, options.no_torch) as rivals:
        yield {"kind": "rivals", "here": rivals.names, "missing": rivals.missing}
        for row in rows:
            try:
                line = line_of(row, measure(kernels, row, effort, options.dtype, rivals), ceiling)
            except OutOfMemoryError as problem:
                line = {"symbol": row.symbol, "model": row.model, **row.sizes, "error": problem.message}
            yield {"kind": "kernel", **line}
            choice = choice_of(line)
            if choice is not None:
                yield choice


def parser() -> argparse.ArgumentParser:
    parsed = argparse.ArgumentParser(description="Time every kernel on the shapes of the four models.")
    parsed.add_argument("--device", choices=("cuda", "emulator"), default="cuda")
    parsed.add_argument("--quick", action="store_true", help="tiny sizes, two repeats: that it runs, not how fast")
    parsed.add_argument("--symbol", nargs="+", default=[], choices=sorted(KERNELS), metavar="SYMBOL")
    parsed.add_argument("--model", nargs="+", default=[], choices=[model.name for model in MODELS], metavar="MODEL")
    parsed.add_argument("--dtype", choices=("f16", "bf16"), default="f16")
    parsed.add_argument("--rotation-mib", type=int, default=256, help="more than four times the L2 cache")
    parsed.add_argument("--marlin", type=Path, metavar="DIR", help="checkout of Marlin, built there")
    parsed.add_argument("--llm-awq", type=Path, metavar="DIR", help="checkout of llm-awq, its kernels built there")
    parsed.add_argument("--no-torch", action="store_true", help="leave out cuBLAS and the other rivals")
    parsed.add_argument("--out", type=Path, help="append the lines there too")
    return parsed


def main() -> int:
    options = parser().parse_args()
    effort = QUICK if options.quick else Effort(rotation_bytes=options.rotation_mib * 2**20)
    common: Row = {}
    try:
        device = open_bench_device(options.device)
        kernels = Kernels(device)
        common = {**facts(device), "dtype": options.dtype, "launches": effort.launches, "repeats": effort.repeats}
        try:
            for number, line in enumerate(lines(options, kernels, effort)):
                write_line({"bench": "kernels", **line, **common, **({} if number else environment())}, options.out)
        finally:
            kernels.close()
            device.close()
    except KernelError as problem:
        print(f"error: {problem.message}" + (f"\nhint: {problem.hint}" if problem.hint else ""), file=sys.stderr)
        return 4
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
