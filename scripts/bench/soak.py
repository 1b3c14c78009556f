#!/usr/bin/env python3
"""Months in minutes: the daemon with a stand-in engine, while its captures are killed time and again.

    python scripts/bench/soak.py [--captions 100000] [--reconnects 1000] [--plant memory] [--out results.jsonl]

After a warm-up of a tenth of the captions, and again at the end, the killing pauses until every source is live and
paused; what the daemon's processes hold is counted then. Sound is: memory (PSS of all of them) grew by at most 16 MB,
and file descriptors, threads and children are as many as before. ``--plant`` leaks something on purpose, 1 KiB per
caption or one file, thread or child per 500: the same check must find it. The exit status is 0 for a sound run, with
``--plant`` for one that was found to leak.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from scripts.bench.record import environment, write_line  # noqa: E402
from tests.peers.daemon import RunningDaemon, descendants  # noqa: E402

SOURCES = 4
KILL_EVERY_S = 0.15
QUIET_S = 3.0
GROWTH_LIMIT_MB = 16.0
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Held:
    """What all processes of the daemon hold together."""

    pss_mb: float
    files: int
    threads: int
    children: int


def held(main: int) -> Held:
    """Count it now; a process that ends meanwhile counts as nothing."""
    pids = [main, *descendants(main)]
    pss, files, threads = 0, 0, 0
    for pid in pids:
        try:
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            pss += 1024 * int(re.findall(r"^Pss:\s+(\d+) kB$", rollup, re.MULTILINE)[0])
            files += sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
            threads += sum(1 for _ in Path(f"/proc/{pid}/task").iterdir())
        except (FileNotFoundError, ProcessLookupError):
            continue
    return Held(round(pss / MIB, 1), files, threads, len(pids) - 1)


def findings(before: Held, after: Held) -> list[str]:
    """What grew beyond its limit; nothing for a sound run."""
    found = []
    if after.pss_mb - before.pss_mb > GROWTH_LIMIT_MB:
        found.append(f"memory grew by {after.pss_mb - before.pss_mb:.1f} MB, the limit is {GROWTH_LIMIT_MB:g}")
    for name in ("files", "threads", "children"):
        if getattr(after, name) != getattr(before, name):
            found.append(f"{name} were {getattr(before, name)} and are {getattr(after, name)}")
    return found


class Soak:
    """One run over a daemon with `SOURCES` sources."""

    def __init__(self, daemon: RunningDaemon, seed: int) -> None:
        self.daemon = daemon
        self._rng = random.Random(seed)
        self.kills = 0

    def counts(self) -> tuple[int, int]:
        """Captions and reconnects so far, as the daemon counts them."""
        with urllib.request.urlopen(self.daemon.url + "/metrics", timeout=60) as answer:
            text = answer.read().decode()
        sums = [
            sum(float(value) for value in re.findall(rf"^{name}\{{[^}}]*\}} (\S+)$", text, re.MULTILINE))
            for name in ("vlm_captions_total", "vlm_source_reconnects_total")
        ]
        return int(sums[0]), int(sums[1])

    def until(self, captions: int, reconnects: int) -> None:
        """Kill captures, in step with the captions, until so many captions and reconnects are reached."""
        while True:
            done, again = self.counts()
            if done >= captions and again >= reconnects:
                return
            if again * captions <= done * reconnects:
                self._kill()
            time.sleep(KILL_EVERY_S)

    def quiet(self) -> Held:
        """What is held once every source is live and no caption is being written: pictures on their way are files."""
        live = {"live"}
        state = self.daemon.wait(lambda state: {source["status"] for source in state["sources"]} == live)
        names = [source["name"] for source in state["sources"]]
        for name in names:
            self.daemon.post(f"/api/sources/{name}/pause", {})
        time.sleep(QUIET_S)
        counted = held(self.daemon.process.pid)
        for name in names:
            self.daemon.post(f"/api/sources/{name}/resume", {})
        return counted

    def _kill(self) -> None:
        captures = [pid for pid in descendants(self.daemon.process.pid) if _name(pid) == "vlm-capture"]
        if captures:
            try:
                os.kill(self._rng.choice(captures), signal.SIGKILL)
                self.kills += 1
            except ProcessLookupError:
                return


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def film(path: Path) -> None:
    """A second of small pictures at 240 fps."""
    command = ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", "testsrc=size=64x48:rate=240:duration=1"]
    subprocess.run([*command, "-c:v", "mjpeg", str(path)], check=True)


def measure(captions: int, reconnects: int, plant: str | None, seed: int) -> dict[str, Any]:
    """One whole run."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        film(folder / "film.avi")
        tables = [
            {"name": f"film-{number}", "uri": str(folder / "film.avi"), "loop": True} for number in range(SOURCES)
        ]
        command = (sys.executable, str(ROOT / "scripts" / "bench" / "soak_daemon.py"))
        settings = {"output": {"jsonl": {"path": str(folder / "captions.jsonl"), "max_bytes": 1 << 20}}}
        planted = {} if plant is None else {"VLM_SOAK_PLANT": plant}
        with RunningDaemon(folder, tables, settings=settings, environment=planted, command=command) as daemon:
            soak, begun = Soak(daemon, seed), time.monotonic()
            soak.until(captions // 10, reconnects // 10)
            before, (warm, _) = soak.quiet(), soak.counts()
            soak.until(captions, reconnects)
            after, (done, again) = soak.quiet(), soak.counts()
            seconds = time.monotonic() - begun
    return {
        "captions": done,
        "captions_after_warm_up": done - warm,
        "reconnects": again,
        "kills": soak.kills,
        "seconds": round(seconds, 1),
        "planted": plant,
        "before": asdict(before),
        "after": asdict(after),
        "findings": findings(before, after),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", type=int, default=100_000)
    parser.add_argument("--reconnects", type=int, default=1000)
    parser.add_argument("--plant", choices=("memory", "files", "threads", "children"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="append the JSON line to this file")
    args = parser.parse_args()
    row = measure(args.captions, args.reconnects, args.plant, args.seed)
    write_line({"bench": "soak", **row} | environment(), args.out)
    return int(bool(row["findings"]) != bool(args.plant))


if __name__ == "__main__":
    raise SystemExit(main())
