#!/usr/bin/env python3
"""Does memory grow with captions? Slope of PSS over many captions, with a negative control.

    python scripts/bench/memory_slope.py BUNDLE                      # the session as it is
    python scripts/bench/memory_slope.py BUNDLE --leak-bytes 4096    # must be caught: exit code 1

PSS is read from /proc/self/smaps_rollup after every caption once the warm-up is over; the slope is a least-squares fit
in bytes per caption. Exit code 0 when it is at most --limit-bytes, 1 when it is above.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import runtime
from scripts.bench.record import environment, write_line


def pss_bytes() -> int:
    """Proportional set size of this process in bytes."""
    for line in Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("/proc/self/smaps_rollup has no Pss line")


def measure(bundle: Path, captions: int, warmup: int, leak_bytes: int) -> np.ndarray:
    """PSS in bytes after each caption that follows the warm-up; shape [captions - warmup]."""
    leaked: list[bytes] = []
    samples = np.zeros(captions - warmup, np.float64)
    with runtime.Session.open(bundle) as session:
        source = runtime.open_source(f"synthetic://?seed=7&frames={captions}", every_frame=True)
        with source:
            for index, frame in enumerate(source):
                session.generate("Describe the image.", images=[frame])
                if leak_bytes:
                    leaked.append(np.random.default_rng(index).bytes(leak_bytes))
                if index >= warmup:
                    samples[index - warmup] = pss_bytes()
    return samples


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--captions", type=int, default=2000)
    parser.add_argument("--warmup", type=int, default=200)
    parser.add_argument("--leak-bytes", type=int, default=0, help="plant a leak of this many bytes per caption")
    parser.add_argument("--limit-bytes", type=float, default=1024.0)
    parser.add_argument("--out", type=Path, help="append the JSON line to this file")
    args = parser.parse_args()
    samples = measure(args.bundle, args.captions, args.warmup, args.leak_bytes)
    steps = np.arange(len(samples), dtype=np.float64)
    slope = float(np.polyfit(steps, samples, 1)[0])
    passed = slope <= args.limit_bytes
    row = {
        "bench": "memory_slope",
        "bundle": args.bundle.name,
        "captions": args.captions,
        "warmup": args.warmup,
        "planted_leak_bytes": args.leak_bytes,
        "pss_first_bytes": int(samples[0]),
        "pss_last_bytes": int(samples[-1]),
        "slope_bytes_per_caption": round(slope, 1),
        "limit_bytes_per_caption": args.limit_bytes,
        "passed": passed,
    }
    write_line(row | environment(), args.out)
    return 0 if passed else 1


if __name__ == "__main__":
    raise SystemExit(main())
