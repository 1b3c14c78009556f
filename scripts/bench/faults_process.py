"""Faults of the whole daemon as a process, in real time, for faults.py.

``back_s``: from the moment when the daemon is asked to go on (started again, or the fault is over) until a caption of a
frame captured after it. ``ended_s``: from the signal until the process and all its children are gone. A watcher that
reads nothing is cut off; ``noticed_s`` counts from its connection, until its buffer is full and ten seconds are over.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.peers.daemon import DEMO_VIDEO, RunningDaemon  # noqa: E402

SOURCE = {"name": "film", "uri": str(DEMO_VIDEO), "loop": True}
STOP_LIMIT_S = 3.0
WAIT_S = 60.0

Seconds = dict[str, float]


def back(daemon: RunningDaemon, since_ns: int) -> float:
    """Seconds from CLOCK_MONOTONIC ``since_ns`` until a caption of a frame captured later was whole."""

    def newer(state: Any) -> bool:
        caption = daemon.source(state, "film").get("caption")
        return caption is not None and caption["frame"]["t_capture_ns"] > since_ns

    frame = daemon.source(daemon.wait(newer), "film")["caption"]
    whole_ns = frame["frame"]["t_capture_ns"] + frame["age_last_ms"] * 1e6
    return float(whole_ns - since_ns) / 1e9


def gone(pids: set[int], since_s: float) -> float:
    """Seconds until none of the processes runs. Raises AssertionError after a minute."""
    end_s = time.monotonic() + WAIT_S
    while left := [pid for pid in pids if _alive(pid)]:
        assert time.monotonic() < end_s, f"{len(left)} processes still run"
        time.sleep(0.005)
    return time.monotonic() - since_s


def _alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def stopped(folder: Path, rng: random.Random, signals: tuple[signal.Signals, ...]) -> Seconds:
    """Signals at a random moment of its life, from its first tenth of a second of listening on; then another start."""
    with RunningDaemon(folder, [SOURCE]) as daemon:
        time.sleep(rng.uniform(0.1, 2.5))
        pids, begun_s = daemon.children() | {daemon.process.pid}, time.monotonic()
        for number in signals:
            daemon.signal(number)
        status = daemon.process.wait(WAIT_S)
        ended_s = gone(pids, begun_s)
    if signals == (signal.SIGTERM,):
        assert status == 0, f"exit status {status}"
    assert ended_s <= STOP_LIMIT_S, f"it took {ended_s:.1f} s to end"
    begun_ns = time.monotonic_ns()
    with RunningDaemon(folder, [SOURCE]) as daemon:
        return {"ended_s": ended_s, "back_s": back(daemon, begun_ns)}


def bad_reload(folder: Path, rng: random.Random) -> Seconds:
    """A configuration with a mistake at SIGHUP: the old one stays and captions go on."""
    mistakes = ("[server]\nprot = 1\n", "not toml", '[[source]]\nname = "film"\n', "", "\x00", "[engine]\nchats = -1\n")
    with RunningDaemon(folder, [SOURCE]) as daemon:
        daemon.wait_caption("film")
        text = rng.choice([mistake for mistake in mistakes if mistake])
        daemon.write(text)
        begun_s, begun_ns = time.monotonic(), time.monotonic_ns()
        daemon.signal(signal.SIGHUP)
        daemon.wait_log("configuration stays as it was")
        noticed_s = time.monotonic() - begun_s
        return {"noticed_s": noticed_s, "back_s": back(daemon, begun_ns)}


def two_instances(folder: Path, rng: random.Random) -> Seconds:
    """A second daemon on the same run directory is refused; the first one goes on."""
    with RunningDaemon(folder, [SOURCE]) as daemon:
        time.sleep(rng.uniform(0, 1))
        begun_s = time.monotonic()
        command = [sys.executable, "-m", "runtime.captiond", str(daemon.config)]
        second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=WAIT_S)
        assert second.returncode == 3 and "another vlm-captiond" in second.stderr, second.stderr[-200:]
        return {"noticed_s": time.monotonic() - begun_s, "back_s": back(daemon, time.monotonic_ns())}


def stalled_watcher(folder: Path, rng: random.Random, websocket: bool) -> Seconds:
    """A client that asks to watch and reads nothing; it is cut off, and captions go on meanwhile."""
    with RunningDaemon(folder, [SOURCE]) as daemon:
        daemon.wait_caption("film")
        host, port = daemon.url.removeprefix("http://").split(":")
        with socket.socket() as plug:
            plug.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rng.choice((2048, 8192)))
            plug.connect((host, int(port)))
            upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n" * websocket
            key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n" * websocket
            path = "/ws" if websocket else "/api/sources/film/live.mjpg"
            plug.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\n{upgrade}{key}\r\n".encode())
            begun_s = time.monotonic()
            end_s = begun_s + 5 * WAIT_S
            while plug.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != 7:  # CLOSE: reset by the daemon
                assert time.monotonic() < end_s, "it was not cut off"
                time.sleep(0.05)
            noticed_s = time.monotonic() - begun_s
        return {"noticed_s": noticed_s, "back_s": back(daemon, time.monotonic_ns())}


Injection = Callable[[Path, random.Random], Seconds]
KINDS: Mapping[str, Injection] = {
    "term": lambda folder, rng: stopped(folder, rng, (signal.SIGTERM,)),
    "interrupted_twice": lambda folder, rng: stopped(folder, rng, (signal.SIGINT, signal.SIGINT)),
    "killed": lambda folder, rng: stopped(folder, rng, (signal.SIGKILL,)),
    "bad_file_at_reload": bad_reload,
    "two_instances": two_instances,
    "stalled_picture_watcher": lambda folder, rng: stalled_watcher(folder, rng, websocket=False),
    "stalled_websocket": lambda folder, rng: stalled_watcher(folder, rng, websocket=True),
}


def measured(kind: str, seeds: int) -> dict[str, Any]:
    """All injections of one kind as a row of the report."""
    outcomes: list[Seconds] = []
    failures: list[str] = []
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as folder:
            try:
                outcomes.append(KINDS[kind](Path(folder), random.Random(f"{kind} {seed}")))
            except (AssertionError, OSError, subprocess.SubprocessError, json.JSONDecodeError) as problem:
                failures.append(f"seed {seed}: {type(problem).__name__}: {str(problem)[:300]}")
    row: dict[str, Any] = {"kind": kind, "injections": seeds, "recovered": len(outcomes), "failures": failures}
    for name in ("noticed_s", "ended_s", "back_s"):
        values = sorted(one[name] for one in outcomes if name in one)
        if values:
            p95 = values[min(len(values) - 1, -(-95 * len(values) // 100) - 1)]
            row[name] = {"median": round(values[len(values) // 2], 3), "p95": round(p95, 3)}
    return row


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for name in sys.argv[1:] or KINDS:
        sys.stdout.write(json.dumps(measured(name, 1)) + "\n")
