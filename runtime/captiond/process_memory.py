"""Memory of processes, from /proc: resident cheaply, proportional (PSS) where the kernel tells it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_KIB = 1024


@dataclass(frozen=True, slots=True)
class ProcessMemory:
    """Sums over the processes of one kind. ``proportional_bytes``: shared pages count by their share; None when the
    kernel does not say."""

    processes: int
    resident_bytes: int
    proportional_bytes: int | None


def memory_of(processes: Mapping[str, Iterable[int]], proc: Path = Path("/proc")) -> dict[str, ProcessMemory]:
    """Memory by kind of process; a process that is gone counts nothing. PSS costs milliseconds per process."""
    return {kind: _sum(pids, proc) for kind, pids in processes.items()}


def _sum(pids: Iterable[int], proc: Path) -> ProcessMemory:
    count, resident, proportional = 0, 0, 0
    known = True
    for pid in pids:
        try:
            resident += int((proc / str(pid) / "statm").read_text().split()[1]) * _PAGE_BYTES
        except (OSError, IndexError, ValueError):
            continue
        count += 1
        pss = _pss(proc / str(pid) / "smaps_rollup")
        known = known and pss is not None
        proportional += pss or 0
    return ProcessMemory(count, resident, proportional if known else None)


def _pss(rollup: Path) -> int | None:
    try:
        lines = rollup.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * _KIB for line in lines if line.startswith("Pss:")), None)
