#!/usr/bin/env python3
"""Decoding on the CPU beside llama.cpp: tokens/s, load time and memory on a random model of the Qwen2-0.5B shape.

    pip install gguf && CMAKE_ARGS=-DGGML_NATIVE=ON pip install llama-cpp-python --no-binary llama-cpp-python
    python scripts/bench/cpu_decode.py --rounds 9 --threads 1 2 --out results.jsonl

The checkpoint is written to a temporary folder, quantised by our export, and as Q4_0 for llama.cpp. Each measurement
is a process of its own. A round runs every variant once (both runtimes, threads waiting actively and passively), in an
order that rotates from round to round. Per number of threads the better policy of each runtime (median) is compared:
ratios ours / llama.cpp of the same round, their median, and its 95 % interval from order statistics. JSON lines on
stdout.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from scripts.bench import cpu_decode_models as models  # noqa: E402
from scripts.bench import cpu_decode_runs as runs  # noqa: E402
from scripts.bench.record import environment, write_line  # noqa: E402

CONTEXT = 1024
RUNTIMES = ("ours", "llama.cpp")
POLICIES = ("active", "passive")
FIGURES = ("decode_tokens_per_s", "prefill_tokens_per_s")
COSTS = ("load_s", "peak_rss_bytes", "pss_bytes", "pss_without_weights_bytes", "anonymous_bytes")
Row = dict[str, Any]


def median_interval(values: list[float]) -> tuple[float, float, float]:
    """(median, low, high): the narrowest symmetric order statistics of ≥ 95 % coverage, else the range."""
    ordered = sorted(values)
    n = len(ordered)
    outside = 0
    rank = 0
    while rank < n // 2:
        outside += math.comb(n, rank)
        if 2 * outside / 2**n > 0.05:
            break
        rank += 1
    low = max(rank - 1, 0)
    return float(np.median(ordered)), ordered[low], ordered[n - 1 - low]


def child(task: dict[str, Any], environment_changes: dict[str, str] | None = None) -> dict[str, Any]:
    """Runs one task in a process of its own and gives the JSON that it printed."""
    run = subprocess.run(
        [sys.executable, __file__, "--task", json.dumps(task)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | (environment_changes or {}),
    )
    if run.returncode:
        raise SystemExit(f"{task}: exit code {run.returncode}\n{run.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(run.stdout)
    return result


def perform(task: dict[str, Any]) -> dict[str, Any]:
    """What a child does."""
    folder, shape = Path(task["folder"]), models.Shape(**task["shape"])
    if task["do"] == "checkpoint":
        return {"bytes": models.write_checkpoint(folder / "checkpoint", shape)}
    if task["do"] == "export":
        return models.export_checkpoint(folder / "checkpoint", folder / "ours", CONTEXT)
    if task["do"] == "gguf":
        return {"bytes": models.write_gguf(folder / "checkpoint", folder / "llama.gguf", shape)}
    ours, gguf, threads = folder / "ours", folder / "llama.gguf", task["threads"]
    weights = [gguf, ours / "decoder/decoder.onnx.data", ours / "decoder/token_embeds.bin"]

    def make() -> runs.Engine:
        if task["runtime"] == "ours":
            return runs.Ours(ours, threads, spin=task["policy"] == "active")
        return runs.LlamaCpp(gguf, threads, CONTEXT)

    return runs.measure(make, weights, prompt=task["prompt"], steps=task["steps"], vocab=shape.vocab)


def run_rounds(base: Row, threads: int, rounds: int, runtimes: list[str], out: Path | None) -> list[Row]:
    """All rounds at one number of threads; each measurement is written as its own line."""
    variants = [(runtime, policy) for policy in POLICIES for runtime in runtimes]
    rows = []
    for index in range(rounds):
        turn = index % len(variants)
        for runtime, policy in variants[turn:] + variants[:turn]:
            case = {"runtime": runtime, "policy": policy, "threads": threads}
            # OMP_WAIT_POLICY is llama.cpp's; ours takes the policy as a setting.
            result = child(base | {"do": "measure"} | case, {"OMP_WAIT_POLICY": policy})
            rows.append({"bench": "cpu_decode", "round": index, **case, **result})
            write_line(rows[-1] | environment(), out)
    return rows


def compare(rows: list[dict[str, Any]], threads: int) -> dict[str, Any]:
    """The summary line of one number of threads."""
    summary: dict[str, Any] = {"bench": "cpu_decode", "summary": True, "threads": threads}
    series: dict[tuple[str, str, str], list[float]] = {}
    for row in rows:
        for figure in (*FIGURES, *COSTS):
            series.setdefault((row["runtime"], row["policy"], figure), []).append(row[figure])
    for figure in FIGURES:
        best = {}
        for runtime in RUNTIMES:
            keys = [(runtime, policy, figure) for policy in POLICIES if (runtime, policy, figure) in series]
            medians = {key[1]: float(np.median(series[key])) for key in keys}
            if medians:
                policy = max(medians, key=medians.__getitem__)
                best[runtime] = series[runtime, policy, figure]
                summary[f"{runtime} {figure}"] = {"policy": policy, "median": round(medians[policy], 2)}
        if len(best) == 2:
            ratios = [mine / theirs for mine, theirs in zip(best["ours"], best["llama.cpp"], strict=True)]
            median, low, high = median_interval(ratios)
            interval = [round(low, 3), round(high, 3)]
            summary[f"ratio {figure}"] = {"median": round(median, 3), "interval": interval, "pairs": len(ratios)}
    for runtime in RUNTIMES:
        for figure in COSTS:
            values = [v for p in POLICIES for v in series.get((runtime, p, figure), [])]
            if values:
                summary[f"{runtime} {figure}"] = round(float(np.median(values)), 3)
    return summary


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--prompt", type=int, default=256, help="tokens of the prefill")
    parser.add_argument("--steps", type=int, default=64, help="decoded tokens per measurement")
    parser.add_argument("--layers", type=int, default=24, help="fewer for a quick look")
    parser.add_argument("--vocab", type=int, default=151936, help="fewer for a quick look")
    parser.add_argument("--ours-only", action="store_true", help="without llama.cpp")
    parser.add_argument("--keep", type=Path, help="keep the models in this folder, and reuse those that are there")
    parser.add_argument("--out", type=Path, help="append the JSON lines to this file")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.task:
        print(json.dumps(perform(json.loads(args.task))))
        return 0
    runtimes = ["ours"] if args.ours_only else list(RUNTIMES)
    shape = models.Shape(layers=args.layers, vocab=args.vocab)
    with tempfile.TemporaryDirectory(prefix="cpu-decode-") as temporary:
        folder = args.keep or Path(temporary)
        base = {"folder": str(folder), "shape": models.shape_fields(shape), "prompt": args.prompt, "steps": args.steps}
        if not (folder / "ours").is_dir():
            child(base | {"do": "checkpoint"})
            exported = child(base | {"do": "export"})
            write_line({"bench": "cpu_decode", "export": exported, "shape": base["shape"]} | environment(), args.out)
        if not args.ours_only and not (folder / "llama.gguf").is_file():
            child(base | {"do": "gguf"})
        for threads in args.threads:
            rows = run_rounds(base, threads, args.rounds, runtimes, args.out)
            write_line(compare(rows, threads) | {"shape": base["shape"]} | environment(), args.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
