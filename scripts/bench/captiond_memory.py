#!/usr/bin/env python3
"""What the daemon keeps in memory, process by process, with 1, 2 and 3 file sources; and how soon it captions.

    python scripts/bench/captiond_memory.py [BUNDLE] [--rounds 3] [--out results.jsonl]

Memory is PSS of all processes of the daemon together at 640x480, once each source has 100 captions; "own" leaves out
the bytes of weights and KV cache as the engine's memory report gives them. Pages that other programs share make PSS
smaller: run nothing else in Python meanwhile. The first caption counts from the start of the process to its last token.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from runtime.sources import open_source  # noqa: E402
from scripts.bench.record import environment, write_line  # noqa: E402
from tests.peers.daemon import DEMO_BUNDLE, RunningDaemon  # noqa: E402

CAPTIONS = 100
MIB = 1 << 20


def film(path: Path) -> None:
    """Ten seconds of rendered scenes, 640x480 at 10 fps."""
    import cv2

    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (640, 480))
    for frame in open_source("synthetic://?seed=5&width=640&height=480&fps=10&frames=100", every_frame=True):
        writer.write(cv2.cvtColor(frame.rgb, cv2.COLOR_RGB2BGR))
    writer.release()


def pss_bytes(pid: int) -> int:
    """Proportional memory of one process."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return 1024 * int(re.findall(r"^Pss:\s+(\d+) kB$", rollup, re.MULTILINE)[0])


def measured(folder: Path, bundle: Path, sources: int) -> dict[str, Any]:
    """One run with so many sources: memory by process, and when the first caption was whole."""
    tables = []
    for number in range(sources):
        path = folder / f"film-{number}.avi"
        film(path)
        tables.append({"name": f"film-{number}", "uri": str(path), "loop": True})
    settings = {"output": {"jsonl": {"path": str(folder / "captions.jsonl")}}}
    begun = time.time()
    with RunningDaemon(folder, tables, bundle=bundle, settings=settings) as daemon:

        def settled(state: Any) -> bool:
            counts = [daemon.source(state, table["name"]).get("caption") for table in tables]
            return all(counts) and state["sources"][0]["caption"]["caption"] >= CAPTIONS * sources

        daemon.wait(settled)
        with urllib.request.urlopen(daemon.url + "/metrics") as answer:
            text = answer.read().decode()
        kinds = {
            kind: int(float(value))
            for kind, value in re.findall(r'^vlm_proportional_memory_bytes\{kind="(\w+)"\} (\S+)$', text, re.MULTILINE)
        }
        engine = {
            name: int(float(value))
            for name, value in re.findall(r'^vlm_engine_memory_bytes\{class="([^"]+)"\} (\S+)$', text, re.MULTILINE)
        }
        pids = [daemon.process.pid, *daemon.children()]
        total = sum(map(pss_bytes, pids))
    first = json.loads((folder / "captions.jsonl").read_text().splitlines()[0])
    whole = first["frame"]["capture_unix"] + first["age_last_ms"] / 1e3
    kept = sum(size for name, size in engine.items() if name != "host buffers")
    return {
        "processes": len(pids),
        "pss_mb": round(total / MIB, 1),
        "by_kind_mb": {kind: round(size / MIB, 1) for kind, size in sorted(kinds.items())},
        "weights_and_kv_mb": round(kept / MIB, 1),
        "own_mb": round((total - kept) / MIB, 1),
        "first_caption_s": round(whole - begun, 2),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, nargs="?", default=DEMO_BUNDLE)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="append the JSON line to this file")
    args = parser.parse_args()
    rows: dict[str, Any] = {}
    for sources in (1, 2, 3):
        runs = []
        for _ in range(args.rounds):
            with tempfile.TemporaryDirectory() as folder:
                runs.append(measured(Path(folder), args.bundle.resolve(), sources))
        median = statistics.median_low([run["own_mb"] for run in runs])
        rows[f"sources_{sources}"] = next(run for run in runs if run["own_mb"] == median)
        rows[f"sources_{sources}"]["own_mb_all"] = sorted(run["own_mb"] for run in runs)
        rows[f"sources_{sources}"]["first_caption_s_all"] = sorted(run["first_caption_s"] for run in runs)
    each = (rows["sources_3"]["own_mb"] - rows["sources_1"]["own_mb"]) / 2
    row = {"bench": "captiond_memory", "bundle": args.bundle.name, **rows, "each_further_source_mb": round(each, 1)}
    write_line(row | environment(), args.out)
    return 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    raise SystemExit(main())
