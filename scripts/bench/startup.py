#!/usr/bin/env python3
"""What starting costs: `import runtime` over bare Python, `Session.open`, the first caption, and each `--help`.

    python scripts/bench/startup.py BUNDLE [--rounds 9] [--out results.jsonl]

Every sample is a fresh child process; bare Python and the import alternate. Memory is PSS of the child in MB. Medians
are printed with their range, nothing is asserted.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from scripts.bench.record import environment, write_line  # noqa: E402

REPORT = """
import json, time
began = time.perf_counter()
{body}
ms = (time.perf_counter() - began) * 1e3
rollup = open("/proc/self/smaps_rollup").read().splitlines()
pss_kb = next(int(line.split()[1]) for line in rollup if line.startswith("Pss:"))
print(json.dumps({{"ms": ms, "pss_mb": pss_kb / 1024, {extra}}}))
"""

OPEN = """
import runtime, numpy
imported = time.perf_counter()
session = runtime.Session.open({bundle!r})
opened = time.perf_counter()
session.generate("Describe the image.", images=[numpy.zeros((96, 128, 3), numpy.uint8)], max_new_tokens=4)
first = time.perf_counter()
"""

HELP_MODULES = ("runtime.caption", "runtime.doctor", "export.build_engines")


def child(body: str, extra: str = "") -> dict[str, float]:
    """Run ``body`` in a fresh interpreter and return what it reports."""
    code = REPORT.format(body=body, extra=extra)
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    figures: dict[str, float] = json.loads(run.stdout.splitlines()[-1])
    return figures


def help_ms(module: str) -> float:
    """Wall milliseconds of ``python -m module --help``."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", module, "--help"], cwd=ROOT, capture_output=True, check=True)
    return (time.perf_counter() - began) * 1e3


def spread(values: list[float]) -> dict[str, float]:
    """Median and range, rounded."""
    return {
        "median": round(statistics.median(values), 1),
        "min": round(min(values), 1),
        "max": round(max(values), 1),
    }


def measure(bundle: Path, rounds: int) -> dict[str, Any]:
    """All figures of ``rounds`` alternating rounds."""
    columns: dict[str, list[float]] = {}

    def add(name: str, value: float) -> None:
        columns.setdefault(name, []).append(value)

    session_extra = '"open_ms": (opened - imported) * 1e3, "first_caption_ms": (first - opened) * 1e3'
    for _ in range(rounds):
        bare, imported = child("pass"), child("import runtime")
        add("import_ms", imported["ms"] - bare["ms"])
        add("import_pss_mb_over_bare", imported["pss_mb"] - bare["pss_mb"])
        used = child("import runtime; runtime.Session; runtime.open_source")  # names load when first used
        add("import_and_use_ms", used["ms"] - bare["ms"])
        add("import_and_use_pss_mb_over_bare", used["pss_mb"] - bare["pss_mb"])
        opened = child(OPEN.format(bundle=str(bundle)), session_extra)
        add("session_open_ms", opened["open_ms"])
        add("first_caption_ms", opened["first_caption_ms"])
        add("session_pss_mb", opened["pss_mb"])
        for module in HELP_MODULES:
            add(f"help_ms {module}", help_ms(module))
    return {name: spread(values) for name, values in columns.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, help="append the JSON line to this file")
    args = parser.parse_args()
    figures = measure(args.bundle.resolve(), args.rounds)
    row = {"bench": "startup", "bundle": args.bundle.name, "rounds": args.rounds, **figures}
    write_line(row | environment(), args.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
