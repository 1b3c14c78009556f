"""What this machine lets a process use: cores, memory, disk; limits of control groups included.

``runtime.doctor`` reports it. Reads files of the kernel only; ``root`` stands for ``/`` so that tests bring their own.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Cpu:
    """Cores: present, allowed by the affinity mask, and the share that a control group grants (None: no limit)."""

    cores: int
    allowed: int
    quota: float | None


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory of the machine, and the limit of the control group (None: no limit). None where /proc is missing."""

    total_bytes: int | None
    available_bytes: int | None
    limit_bytes: int | None


def cpu(root: Path = Path("/")) -> Cpu:
    """Count the cores that this process may use."""
    quotas = [quota for folder in _groups(root, "cpu") if (quota := _quota(folder)) is not None]
    return Cpu(os.cpu_count() or 1, len(os.sched_getaffinity(0)), min(quotas, default=None))


def memory(root: Path = Path("/")) -> Memory:
    """Read how much memory there is, is free to use, and is granted."""
    text = _read(root / "proc/meminfo") or ""
    values = {name: int(kib) * 1024 for name, kib in re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)}
    total = values.get("MemTotal")
    limits = [limit for folder in _groups(root, "memory") if (limit := _limit(folder)) is not None]
    # A limit above what the machine has is how version 1 writes "no limit".
    binding = [limit for limit in limits if total is None or limit < total]
    return Memory(total, values.get("MemAvailable"), min(binding, default=None))


def disk_free_bytes(path: Path) -> int:
    """Return the space left for this user where ``path`` is, or would be created."""
    place = path.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return None


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Yield the folders of this process's control groups, from its own up to the root: each may set a limit."""
    for line in (_read(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, path = (line.split(":", 2) + ["", ""])[:3]
        names = controllers.split(",")
        if controllers == "":
            mount = root / "sys/fs/cgroup"
        elif controller in names:
            mount = root / "sys/fs/cgroup" / controllers
        else:
            continue
        folder = mount / path.lstrip("/")
        yield folder
        # In a container the path is often that of the host, and only the mount point itself can be seen.
        yield from (parent for parent in folder.parents if parent == mount or mount in parent.parents)


def _quota(folder: Path) -> float | None:
    """Return the cores granted: version 2 writes ``<quota|max> <period>``, version 1 has two files and -1."""
    text = _read(folder / "cpu.max")
    if text is None:
        text = f"{_read(folder / 'cpu.cfs_quota_us') or 'max'} {_read(folder / 'cpu.cfs_period_us') or ''}"
    quota, *period = text.split()
    if not quota.isdigit() or not period or not period[0].isdigit() or int(period[0]) == 0:
        return None
    return int(quota) / int(period[0])


def _limit(folder: Path) -> int | None:
    text = _read(folder / "memory.max") or _read(folder / "memory.limit_in_bytes") or ""
    return int(text) if text.strip().isdigit() else None
