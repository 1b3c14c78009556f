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
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from scripts.bench.record import environment, write_line  # noqa: E402
from tests.runtime.captiond.faults.sink_faults import CAPTIONS_PER_S, KINDS, Outcome  # noqa: E402


def inject(kind: str, seed: int) -> Outcome | str:
    """One injection: how it went, or what did not."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            return asyncio.run(KINDS[kind](Path(folder), random.Random(seed)))
        except (AssertionError, OSError, asyncio.TimeoutError) as error:
            return f"seed {seed}: {type(error).__name__}: {error}"


def row(kind: str, seeds: int) -> dict[str, Any]:
    """All injections of a kind as one line."""
    outcomes = [inject(kind, seed) for seed in range(seeds)]
    good = [one for one in outcomes if isinstance(one, Outcome)]
    noticed = [one.noticed_s for one in good if one.noticed_s is not None]
    back = sorted(one.back_s for one in good)
    return {
        "kind": kind,
        "injections": seeds,
        "recovered": len(good),
        "failures": [one for one in outcomes if isinstance(one, str)],
        "noticed_s_max": round(max(noticed), 3) if noticed else None,
        "back_s_median": round(statistics.median(back), 3) if back else None,
        "back_s_max": round(back[-1], 3) if back else None,
        "published": sum(one.published for one in good),
        "missed_by_others": sum(max(0, one.missed - 1) for one in good),
        "dropped_for_the_sink": sum(one.dropped for one in good),
        "longest_publish_ms": round(max((one.longest_publish_ms for one in good), default=0.0), 3),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the kinds one after the other; 1 when an injection was not recovered from."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10, help="injections of each kind (default 10)")
    parser.add_argument("--kinds", default=",".join(KINDS), help="kinds, separated by commas (default: all)")
    parser.add_argument("--out", type=Path, help="append the lines to this file")
    given = parser.parse_args(arguments)
    unknown = sorted(set(given.kinds.split(",")) - set(KINDS))
    if unknown:
        parser.error(f"no such kind: {', '.join(unknown)}; there are {', '.join(KINDS)}")
    rows = []
    for kind in given.kinds.split(","):
        rows.append(row(kind, given.seeds))
        write_line(
            {"benchmark": "faults_sinks", **rows[-1], "captions_per_s": CAPTIONS_PER_S, **environment()}, given.out
        )
    return 0 if all(one["recovered"] == one["injections"] for one in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
