"""Runs a command under a memory limit and says what it took; for ``full_shape.py``. Torch-free, so that it is small.

The limit is kept by watching: every 50 ms the resident memory (VmRSS) of the child and of each of its descendants is
read, and the whole group is killed when one process is above it. The peak is VmHWM, the kernel's own high-water mark of
each process, so nothing between two looks is missed except in the last 50 ms of a process; `wait4` reports the exact
mark of a child that takes more than the process that watches it. Resident pages of mapped files count like all others.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path

INTERVAL_S = 0.05
_TAIL_CHARS = 2000


@dataclass(frozen=True)
class Run:
    """What a command took. ``peak_mb``: the largest VmHWM of one process; ``killed``: it went over the limit."""

    seconds: float
    peak_mb: float
    code: int
    killed: bool
    stdout: str
    stderr_tail: str


def run_limited(command: list[str], limit_bytes: int, cwd: Path) -> Run:
    """Runs ``command`` in a process group of its own until it ends or takes more than ``limit_bytes``."""
    began = time.perf_counter()
    child = subprocess.Popen(
        command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    watch = _Watch(child.pid, limit_bytes)
    texts: dict[str, str] = {}
    readers = [threading.Thread(target=_drain, args=(child, name, texts)) for name in ("stdout", "stderr")]
    for thread in (watch, *readers):
        thread.start()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    watch.finished.set()
    for thread in (watch, *readers):
        thread.join()
    # The mark that the kernel reports at the end begins with the memory of the process that started the child.
    ours = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak = max(watch.peak_kb, usage.ru_maxrss if usage.ru_maxrss > ours else 0) / 1024
    seconds = time.perf_counter() - began
    tail = texts["stderr"][-_TAIL_CHARS:]
    return Run(round(seconds, 1), round(peak, 1), child.returncode, watch.killed, texts["stdout"], tail)


def _drain(child: subprocess.Popen[str], name: str, texts: dict[str, str]) -> None:
    stream = getattr(child, name)
    with stream:
        texts[name] = stream.read()


class _Watch(threading.Thread):
    """Looks at a process and its descendants until ``finished`` is set."""

    def __init__(self, pid: int, limit_bytes: int) -> None:
        super().__init__(daemon=True)
        self._pid, self._limit_kb = pid, limit_bytes // 1024
        self.finished = threading.Event()
        self.killed = False
        self.peak_kb = 0

    def run(self) -> None:
        while not self.finished.wait(INTERVAL_S):
            for pid in _family(self._pid):
                resident, peak = _memory_kb(pid)
                self.peak_kb = max(self.peak_kb, peak)
                if resident > self._limit_kb and not self.killed:
                    self.killed = True
                    os.killpg(self._pid, signal.SIGKILL)


def _family(pid: int) -> list[int]:
    """A process and its descendants."""
    found, waiting = [], [pid]
    while waiting:
        current = waiting.pop()
        found.append(current)
        for task in Path(f"/proc/{current}/task").glob("*/children"):
            try:
                waiting += [int(text) for text in task.read_text(encoding="ascii").split()]
            except OSError:  # it ended meanwhile
                continue
    return found


def _memory_kb(pid: int) -> tuple[int, int]:
    """(VmRSS, VmHWM) of a process, zeros when it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return 0, 0
    fields = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
    return int(fields.get("VmRSS", ["0"])[0]), int(fields.get("VmHWM", ["0"])[0])
