#!/usr/bin/env python3
"""The daemon under load: one camera at 30 fps, chats, watchers and clients that do not read.

    python scripts/bench/load.py [BUNDLE] [--seconds 600] [--out scripts/bench/results/load.jsonl]

1. For --seconds: the camera is captioned at a set cadence of 2 per second, 4 chats with a picture stream all the time,
   50 clients watch events, 10 more ask for events and read nothing (each is replaced once it is cut off).
   Measured: the share of due captions whose start a watcher hears of within 250 ms of the due time (the batching of
   events included), tokens of the slowest chat over those of the fastest, /health 10 times a second, memory (PSS of all
   processes of the daemon): its slope and growth after a warm-up of a fifth of the time.
2. For --pairs pairs of blocks of 10 s: captions at full speed without chats, of a source of 120 frames a second (one of
   30 would be the limit, not the engine), with and without the watchers and the
   stalled clients, in turn; the cost is the median of the paired differences. The watchers' own program runs on the
   same processors, reads and throws away; its processor time and that of the daemon's main process are reported beside.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import json
import os
import random
import re
import selectors
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import aiohttp  # noqa: E402
import numpy as np  # noqa: E402

from runtime.sources import open_source  # noqa: E402
from scripts.bench.record import environment, write_line  # noqa: E402
from tests.peers.daemon import DEMO_BUNDLE, RunningDaemon, descendants  # noqa: E402

FPS, FAST_FPS, CADENCE = 30, 120, 2.0
LATE_S = 0.25
CHATS, WATCHERS, STALLED = 4, 50, 10
BLOCK_S, SETTLE_S = 10.0, 2.0
NAME = "camera"
QUESTION = "Describe the image."


def film(path: Path, fps: int) -> None:
    """300 rendered scenes, 640x480."""
    import cv2

    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), fps, (640, 480))
    for frame in open_source(f"synthetic://?seed=5&width=640&height=480&fps={fps}&frames=300", every_frame=True):
        writer.write(cv2.cvtColor(frame.rgb, cv2.COLOR_RGB2BGR))
    writer.release()


# The crowd: a program of its own, so that its work is not the bench's.


def ask_for_events(url: str, receive_bytes: int | None) -> socket.socket:
    """A connection on which events come."""
    parts = urlsplit(url)
    plug = socket.socket()
    if receive_bytes is not None:
        plug.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    plug.connect((parts.hostname, parts.port))
    plug.sendall(f"GET /events HTTP/1.1\r\nHost: {parts.netloc}\r\n\r\n".encode())
    plug.setblocking(False)
    return plug


def crowd(url: str, watchers: int, stalled: int) -> None:
    """Watch and throw away, stall and come back, until the standard input ends; then write what it took."""
    chosen, cut = selectors.DefaultSelector(), 0
    chosen.register(sys.stdin, selectors.EVENT_READ)
    for _ in range(watchers):
        chosen.register(ask_for_events(url, None), selectors.EVENT_READ)
    silent = [ask_for_events(url, 4096) for _ in range(stalled)]
    lost, looked_s = 0, time.monotonic()
    begun_cpu_s = time.process_time()
    while True:
        for key, _ in chosen.select(timeout=1.0):
            plug = key.fileobj
            if not isinstance(plug, socket.socket):
                sys.stdout.write(json.dumps({"cut": cut, "lost": lost, "cpu_s": time.process_time() - begun_cpu_s}))
                return
            if not _drain(plug):
                lost += 1
                chosen.unregister(plug)
        if time.monotonic() - looked_s > 1.0:
            looked_s = time.monotonic()
            for number, plug in enumerate(silent):
                if _cut_off(plug):
                    cut += 1
                    plug.close()
                    silent[number] = ask_for_events(url, 4096)


def _drain(plug: socket.socket) -> bool:
    try:
        return bool(plug.recv(65536))
    except BlockingIOError:
        return True
    except OSError:
        return False


def _cut_off(plug: socket.socket) -> bool:
    """Whether the server has hung up on a client that reads nothing: its state in the kernel says so (TCP_INFO)."""
    established = 1
    return plug.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != established


class Crowd:
    """The crowd while it is there; ``report`` holds what it wrote at its end."""

    def __init__(self, url: str, watchers: int, stalled: int) -> None:
        self._command = [sys.executable, __file__, "--crowd", url, str(watchers), str(stalled)]
        self.report: dict[str, float] = {}

    def __enter__(self) -> Crowd:
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(self, *_: object) -> None:
        out, _ = self._process.communicate("")
        self.report = json.loads(out)


# What the bench does itself


class Load:
    """Clients of a running daemon for ``seconds``."""

    def __init__(self, daemon: RunningDaemon, seconds: float) -> None:
        self._daemon, self._seconds = daemon, seconds
        self._end_s = 0.0
        self.starts_s: list[float] = []
        self.due_from_s = 0.0
        self.tokens = [0] * CHATS
        self.answers = 0
        self.refused = 0
        self.health_ms: list[float] = []
        self.unhealthy = 0
        self.memory: list[tuple[float, int]] = []

    async def run(self) -> None:
        """Everything at once, until the time is over."""
        limit = aiohttp.ClientTimeout(total=None, sock_read=120)
        async with aiohttp.ClientSession(timeout=limit, connector=aiohttp.TCPConnector(limit=0)) as session:
            self._end_s = time.monotonic() + self._seconds
            picture = await self._picture(session)
            watching = asyncio.create_task(self._watch(session))
            await asyncio.sleep(1.0)
            self.due_from_s = time.monotonic()
            body = {"captions_per_s": CADENCE}
            async with session.post(f"{self._daemon.url}/api/sources/{NAME}/cadence", json=body) as answer:
                answer.raise_for_status()
            chats = [self._chat(session, number, picture) for number in range(CHATS)]
            await asyncio.gather(self._probe(session), self._weigh(), *chats)
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    async def _picture(self, session: aiohttp.ClientSession) -> str:
        async with session.get(f"{self._daemon.url}/api/sources/{NAME}/picture.jpg") as answer:
            answer.raise_for_status()
            return "data:image/jpeg;base64," + base64.b64encode(await answer.read()).decode()

    async def _watch(self, session: aiohttp.ClientSession) -> None:
        async with session.get(self._daemon.url + "/events?types=caption_started") as answer:
            async for line in answer.content:
                if line.startswith(b"event: caption_started"):
                    self.starts_s.append(time.monotonic())

    async def _chat(self, session: aiohttp.ClientSession, number: int, picture: str) -> None:
        parts = [{"type": "text", "text": QUESTION}, {"type": "image_url", "image_url": {"url": picture}}]
        body = {"model": "", "messages": [{"role": "user", "content": parts}], "stream": True, "max_tokens": 96}
        async with session.get(self._daemon.url + "/v1/models") as answer:
            body["model"] = (await answer.json())["data"][0]["id"]
        while time.monotonic() < self._end_s:
            async with session.post(self._daemon.url + "/v1/chat/completions", json=body) as answer:
                if answer.status != 200:
                    self.refused += 1
                    await asyncio.sleep(1.0)
                    continue
                async for line in answer.content:
                    if b'"content":"' in line.replace(b'": "', b'":"') and time.monotonic() < self._end_s:
                        self.tokens[number] += 1
            self.answers += 1

    async def _probe(self, session: aiohttp.ClientSession) -> None:
        while time.monotonic() < self._end_s:
            begun_s = time.monotonic()
            async with session.get(self._daemon.url + "/health") as answer:
                await answer.read()
                self.unhealthy += answer.status != 200
            self.health_ms.append((time.monotonic() - begun_s) * 1e3)
            await asyncio.sleep(0.1)

    async def _weigh(self) -> None:
        while time.monotonic() < self._end_s:
            self.memory.append((time.monotonic(), pss_bytes(self._daemon.process.pid)))
            await asyncio.sleep(min(5.0, self._seconds / 20))

    def lateness_s(self) -> list[float]:
        """By due time: how late its caption started; infinite when none did before the next due time."""
        period_s = 1 / CADENCE
        starts = iter(sorted(start for start in self.starts_s if start >= self.due_from_s))
        start, late = next(starts, None), []
        for number in range(int((self._end_s - self.due_from_s) * CADENCE) - 1):
            due_s = self.due_from_s + number * period_s
            while start is not None and start < due_s:
                start = next(starts, None)
            late.append(float("inf") if start is None or start >= due_s + period_s else start - due_s)
        return late

    def report(self) -> dict[str, Any]:
        """The figures."""
        late = self.lateness_s()
        kept = [item for item in self.memory if item[0] >= self.memory[0][0] + self._seconds / 5]
        times_s, sizes = np.array([item[0] for item in kept]), np.array([float(item[1]) for item in kept])
        slope = float(np.polyfit(times_s - times_s[0], sizes, 1)[0]) if len(kept) > 2 else 0.0
        health = sorted(self.health_ms)
        return {
            "due_captions": len(late),
            "started_within_250ms": round(sum(item <= LATE_S for item in late) / max(1, len(late)), 4),
            "start_ms_p50": _ms(late, 0.5),
            "start_ms_p95": _ms(late, 0.95),
            "chat_tokens": self.tokens,
            "chat_slowest_over_fastest": round(min(self.tokens) / max(1, max(self.tokens)), 3),
            "chat_answers": self.answers,
            "chat_refused": self.refused,
            "health_ms_p50": round(statistics.median(health), 2),
            "health_ms_p99": round(health[int(0.99 * (len(health) - 1))], 2),
            "health_ms_max": round(health[-1], 2),
            "unhealthy": self.unhealthy,
            "pss_mb": round(float(sizes[-1]) / 2**20, 1),
            "pss_growth_mb": round(float(np.median(sizes[-5:]) - np.median(sizes[:5])) / 2**20, 2),
            "pss_slope_kb_per_min": round(slope * 60 / 1024, 1),
        }


def _ms(values: list[float], share: float) -> float | None:
    """A percentile in milliseconds; None when it is beyond the next due time."""
    value = sorted(values)[int(share * (len(values) - 1))]
    return round(value * 1e3, 1) if value != float("inf") else None


def pss_bytes(pid: int) -> int:
    """Proportional memory of the daemon's processes."""
    total = 0
    for one in (pid, *descendants(pid)):
        with contextlib.suppress(OSError):
            rollup = Path(f"/proc/{one}/smaps_rollup").read_text()
            total += 1024 * int(re.findall(r"^Pss:\s+(\d+) kB$", rollup, re.MULTILINE)[0])
    return total


def captions(daemon: RunningDaemon) -> float:
    """Captions so far."""
    with urllib.request.urlopen(daemon.url + "/metrics") as answer:
        return sum(map(float, re.findall(r"^vlm_captions_total\{[^}]*\} (\S+)$", answer.read().decode(), re.MULTILINE)))


def block(daemon: RunningDaemon) -> tuple[float, float]:
    """Captions per second, and processor seconds of the daemon's main process per second, over one block."""
    time.sleep(SETTLE_S)
    begun, begun_cpu_s, begun_s = captions(daemon), cpu_s_of(daemon.process.pid), time.monotonic()
    time.sleep(BLOCK_S)
    spent_s = time.monotonic() - begun_s
    return (captions(daemon) - begun) / spent_s, (cpu_s_of(daemon.process.pid) - begun_cpu_s) / spent_s


def cpu_s_of(pid: int) -> float:
    """Processor time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def watchers_cost(daemon: RunningDaemon, pairs: int) -> dict[str, Any]:
    """Captions at full speed with and without the crowd, in turn, in an order drawn by chance."""
    order, alone, watched, cpu_s = random.Random(1), [], [], 0.0
    for _ in range(pairs):
        for crowded in order.sample((False, True), 2):
            if not crowded:
                alone.append(block(daemon))
                continue
            with Crowd(daemon.url, WATCHERS, STALLED) as there:
                watched.append(block(daemon))
            cpu_s += there.report["cpu_s"]
    costs = [1 - with_crowd[0] / without[0] for without, with_crowd in zip(alone, watched, strict=True)]
    return {
        "captions_per_s_alone": [round(rate, 2) for rate, _ in alone],
        "captions_per_s_watched": [round(rate, 2) for rate, _ in watched],
        "watchers_cost": round(statistics.median(costs), 4),
        "main_cpu_share_alone": round(statistics.median(share for _, share in alone), 4),
        "main_cpu_share_watched": round(statistics.median(share for _, share in watched), 4),
        "crowd_cpu_share": round(cpu_s / (pairs * (BLOCK_S + SETTLE_S)), 4),
    }


@contextlib.contextmanager
def daemon_of(fps: int, captions_per_s: float, settings: Mapping[str, object]) -> Iterator[RunningDaemon]:
    """A daemon with one source of so many frames a second, once it captions."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "film.avi"
        film(path, fps)
        source = {"name": NAME, "uri": str(path), "loop": True, "captions_per_s": captions_per_s}
        with RunningDaemon(Path(folder), [source], settings=settings) as daemon:
            daemon.wait_caption(NAME)
            yield daemon


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, nargs="?", default=DEMO_BUNDLE)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--threads", type=int, help="CPU threads of the engine (default: what the daemon chooses)")
    parser.add_argument("--out", type=Path, help="append the JSON line to this file")
    parser.add_argument("--crowd", nargs=3, metavar=("URL", "WATCHERS", "STALLED"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.crowd is not None:
        crowd(args.crowd[0], int(args.crowd[1]), int(args.crowd[2]))
        return 0
    engine: dict[str, object] = {"bundle": str(args.bundle.resolve()), "chats": CHATS}
    if args.threads is not None:
        engine["threads"] = args.threads
    settings = {"engine": engine, "output": {"terminal": {"enabled": False}}}
    found: dict[str, Any] = {}
    with daemon_of(FPS, CADENCE, settings) as daemon:
        with Crowd(daemon.url, WATCHERS - 1, STALLED) as there:
            load = Load(daemon, args.seconds)
            asyncio.run(load.run())
        found |= load.report() | {"stalled_cut_off": there.report["cut"], "watchers_lost": there.report["lost"]}
    with daemon_of(FAST_FPS, 0.0, settings) as daemon:
        found |= watchers_cost(daemon, args.pairs)
    row = {"bench": "load", "bundle": args.bundle.name, "seconds": args.seconds, "threads": args.threads} | found
    write_line(row | environment(), args.out)
    return 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    raise SystemExit(main())
