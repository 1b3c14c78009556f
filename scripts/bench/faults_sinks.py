#!/usr/bin/env python3
"""Sink faults against real peers in real time: whether captions reach the sink again, and whom it held up meanwhile.

    python scripts/bench/faults_sinks.py [--seeds 10] [--kinds broker_down,disk_full] [--out results.jsonl]

Two hundred captions a second are published to an output and to another subscriber. At the sink of the output something
happens that the seed draws, and it becomes well again. ``noticed_s``: until the output says so. ``back_s``: from the
instant when the sink is well until a caption arrives that was published after it. ``missed``: captions that the other
subscriber did not get. ``longest_publish_ms``: what publishing one caption took at most.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from runtime.errors import VlmError  # noqa: E402
from scripts.bench.record import environment, write_line  # noqa: E402
from tests.runtime.captiond.faults.sink_faults import CAPTIONS_PER_S, KINDS, Outcome  # noqa: E402


def measured(kind: str, seeds: int) -> dict[str, Any]:
    """All injections of one kind as a row of the report. Not inside a running event loop."""
    outcomes: list[Outcome] = []
    failures: list[str] = []
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as folder:
            try:
                outcomes.append(asyncio.run(KINDS[kind](Path(folder), random.Random(f"{kind} {seed}"))))
            except (AssertionError, OSError, TimeoutError, VlmError) as problem:
                failures.append(f"seed {seed}: {type(problem).__name__}: {problem}")
    row: dict[str, Any] = {"kind": kind, "injections": seeds, "recovered": len(outcomes), "failures": failures}
    for name in ("noticed_s", "back_s", "longest_publish_ms"):
        values = sorted(value for one in outcomes if (value := getattr(one, name)) is not None)
        if values:
            row[name] = {"median": round(values[len(values) // 2], 3), "p95": round(values[_p95(len(values))], 3)}
    # The caption that was published last may not have been read when an injection ended.
    row["missed_by_others"] = sum(max(0, one.missed - 1) for one in outcomes)
    row["dropped_for_the_sink"] = sum(one.dropped for one in outcomes)
    row["published"] = sum(one.published for one in outcomes)
    return row


def _p95(count: int) -> int:
    return min(count - 1, -(-95 * count // 100) - 1)


def main() -> int:
    """Run the kinds one after the other; 1 when an injection was not recovered from."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10, help="injections of each kind (default 10)")
    parser.add_argument("--kinds", help="names, separated by commas (default: all)")
    parser.add_argument("--out", type=Path, help="append the JSON line to this file")
    args = parser.parse_args()
    kinds = list(KINDS) if args.kinds is None else args.kinds.split(",")
    rows = []
    for kind in kinds:
        rows.append(measured(kind, args.seeds))
        sys.stderr.write(f"{rows[-1]}\n")
    write_line({"bench": "faults_sinks", "captions_per_s": CAPTIONS_PER_S, "kinds": rows} | environment(), args.out)
    return 0 if all(row["recovered"] == row["injections"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
