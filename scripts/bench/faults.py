#!/usr/bin/env python3
"""Every kind of fault, in real time against real peers: whether the daemon recovers, and how long that takes.

    python scripts/bench/faults.py [--seeds 10] [--lanes 2] [--groups camera,engine] [--kinds refuse,401] [--out FILE]

Each group is a module beside this one with KINDS and ``measured(kind, seeds) -> row``. One JSON line is written: a row
per kind with injections, recovered, failures and seconds (noticed_s, back_s) as the group defines them.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from scripts.bench.record import environment, write_line  # noqa: E402

GROUPS = ("camera", "engine", "sinks", "process")
BACK_LIMIT_S = 5.0
NOTICED_LIMIT_S = 2.0


def chosen(groups: Iterable[str], kinds: str | None) -> list[tuple[str, str]]:
    """Groups and kinds that were asked for; a name that is none ends the program."""
    there = {group: import_module(f"scripts.bench.faults_{group}").KINDS for group in groups}
    found = [(group, kind) for group, names in there.items() for kind in names]
    if kinds is None:
        return found
    names = kinds.split(",")
    unknown = sorted(set(names) - {kind for _, kind in found})
    if unknown:
        raise SystemExit(f"no such kind: {', '.join(unknown)}; there are {', '.join(kind for _, kind in found)}")
    return [pair for pair in found if pair[1] in names]


def row_of(group: str, kind: str, seeds: int) -> dict[str, Any]:
    """One row; told on standard error as soon as it is there."""
    begun_s = time.monotonic()
    row: dict[str, Any] = {"group": group, **import_module(f"scripts.bench.faults_{group}").measured(kind, seeds)}
    row["took_s"] = round(time.monotonic() - begun_s, 1)
    sys.stderr.write(f"{row}\n")
    return row


def beyond_limits(row: Mapping[str, Any]) -> list[str]:
    """What of the promises a camera's row breaks: noticed in 2 s, back in 5 s at the 95th percentile."""
    if row["group"] != "camera":
        return []
    limits = {"noticed_s": NOTICED_LIMIT_S, "back_s": BACK_LIMIT_S}
    return [
        f"{row['kind']}: {name} p95 {row[name]['p95']}"
        for name in limits
        if row.get(name, {"p95": 0})["p95"] > limits[name]
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10, help="injections of each kind (default: 10)")
    parser.add_argument("--lanes", type=int, default=1, help="kinds at the same time (default: 1)")
    parser.add_argument("--groups", default=",".join(_present()), help="default: %(default)s")
    parser.add_argument("--kinds", help="names, separated by commas (default: all)")
    parser.add_argument("--out", type=Path, help="append the JSON line to this file")
    args = parser.parse_args()
    pairs = chosen(args.groups.split(","), args.kinds)
    with ThreadPoolExecutor(args.lanes) as lanes:
        rows = list(lanes.map(lambda pair: row_of(*pair, args.seeds), pairs))
    late = [text for row in rows for text in beyond_limits(row)]
    injections, recovered = (sum(row[name] for row in rows) for name in ("injections", "recovered"))
    line = {
        "bench": "faults",
        "seeds": args.seeds,
        "lanes": args.lanes,
        "injections": injections,
        "recovered": recovered,
    }
    write_line(line | {"beyond_limits": late, "kinds": rows} | environment(), args.out)
    return 0 if recovered == injections and not late else 1


def _present() -> list[str]:
    return [group for group in GROUPS if Path(__file__).with_name(f"faults_{group}.py").exists()]


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    raise SystemExit(main())
