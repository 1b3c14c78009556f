"""How many threads an engine may use on this machine without taking what belongs to others."""

from __future__ import annotations

import os
from pathlib import Path

CPU_ROOT = Path("/sys/devices/system/cpu")
CGROUP_ROOT = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def default_threads(
    cpus: frozenset[int] | None = None,
    *,
    cpu_root: Path = CPU_ROOT,
    cgroup_root: Path = CGROUP_ROOT,
    membership: Path = MEMBERSHIP,
) -> int:
    """Physical cores that this process may run on, bounded by its cgroup's quota; at least 1.

    Hyper-threads of one core count once: the second one adds nothing to a loop that waits for memory. ``cpus`` is the
    affinity mask (default: the process's own); the paths exist for tests. A quota of 1.5 CPUs gives one thread, since
    two would be throttled together.
    """
    available = allowed_cpus() if cpus is None else cpus
    cores = {_siblings(cpu_root, cpu) for cpu in available}
    quota = _cgroup_quota(cgroup_root, membership)
    limit = len(cores) if quota is None else min(len(cores), int(quota))
    return max(1, limit)


def cores_are_ours(cpus: frozenset[int] | None = None, *, cpu_root: Path = CPU_ROOT) -> bool:
    """Whether every CPU of the affinity mask is isolated (``isolcpus``), so that waiting may spin."""
    available = allowed_cpus() if cpus is None else cpus
    return bool(available) and available <= _cpu_list(_read(cpu_root / "isolated"))


def allowed_cpus() -> frozenset[int]:
    """The CPUs of the process's affinity mask."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def _siblings(cpu_root: Path, cpu: int) -> str:
    """A text that hyper-threads of the same core share."""
    return _read(cpu_root / f"cpu{cpu}" / "topology" / "thread_siblings_list") or str(cpu)


def _cgroup_quota(cgroup_root: Path, membership: Path) -> float | None:
    """CPUs that the process's cgroup or one above it grants (version 2 ``cpu.max``, version 1 ``cfs_quota``)."""
    found: list[float] = []
    for line in _read(membership).splitlines():
        _, controllers, path = (line.split(":", 2) + ["", ""])[:3]
        base = cgroup_root if not controllers else cgroup_root / "cpu"
        if controllers and "cpu" not in controllers.split(","):
            continue
        folder = base / path.lstrip("/")
        for level in (folder, *folder.parents):
            if level != base and base not in level.parents:
                break
            found += _quota_of(level)
    return min(found, default=None)


def _quota_of(folder: Path) -> list[float]:
    fields = _read(folder / "cpu.max").split()
    if len(fields) != 2:
        fields = [_read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")]
    if all(field.isdigit() for field in fields) and int(fields[1]):
        return [int(fields[0]) / int(fields[1])]
    return []


def _cpu_list(text: str) -> frozenset[int]:
    """CPUs of a kernel list such as ``0-3,6``."""
    cpus: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        if first.isdigit():
            cpus.update(range(int(first), int(last if last.isdigit() else first) + 1))
    return frozenset(cpus)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""
