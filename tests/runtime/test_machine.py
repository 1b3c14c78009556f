"""Limits are read from copies of the kernel's files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runtime import machine

GIB = 1 << 30


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_cores_count_the_affinity_mask_of_this_process() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert machine.cpu().allowed == 1
    finally:
        os.sched_setaffinity(0, before)
    assert machine.cpu().allowed == len(before)


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"proc/self/cgroup": "0::/app\n", "sys/fs/cgroup/app/cpu.max": "150000 100000\n"}, 1.5),
        ({"proc/self/cgroup": "0::/app\n", "sys/fs/cgroup/app/cpu.max": "max 100000\n"}, None),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/b/cpu.max": "max 100000",
                "sys/fs/cgroup/a/cpu.max": "50000 100000",
            },
            0.5,
        ),
        ({"proc/self/cgroup": "0::/host/only\n", "sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2.0),
        (
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/app\n0::/\n",
                "sys/fs/cgroup/cpu,cpuacct/app/cpu.cfs_quota_us": "300000\n",
                "sys/fs/cgroup/cpu,cpuacct/app/cpu.cfs_period_us": "100000\n",
            },
            3.0,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/app\n",
                "sys/fs/cgroup/cpu,cpuacct/app/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu,cpuacct/app/cpu.cfs_period_us": "100000\n",
            },
            None,
        ),
        ({}, None),
    ],
    ids=["v2", "v2-unlimited", "v2-parent-is-tighter", "v2-container-sees-the-mount", "v1", "v1-unlimited", "none"],
)
def test_quota_of_the_control_group_is_the_tightest_on_the_way_up(
    tmp_path: Path, files: dict[str, str], quota: float | None
) -> None:
    assert machine.cpu(write(tmp_path, files)).quota == quota


def test_memory_is_total_available_and_the_limit_of_the_group(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            "proc/meminfo": "MemTotal:        8388608 kB\nMemFree: 1 kB\nMemAvailable:    4194304 kB\n",
            "proc/self/cgroup": "0::/app\n",
            "sys/fs/cgroup/app/memory.max": f"{2 * GIB}\n",
        },
    )
    assert machine.memory(root) == machine.Memory(8 * GIB, 4 * GIB, 2 * GIB)


def test_a_limit_larger_than_the_machine_is_no_limit(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            "proc/meminfo": "MemTotal:        8388608 kB\n",
            "proc/self/cgroup": "9:memory:/\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        },
    )
    assert machine.memory(root) == machine.Memory(8 * GIB, None, None)


def test_memory_is_unknown_without_proc(tmp_path: Path) -> None:
    assert machine.memory(tmp_path) == machine.Memory(None, None, None)


def test_free_space_is_asked_where_a_folder_would_be_created(tmp_path: Path) -> None:
    stat = os.statvfs(tmp_path)
    free = machine.disk_free_bytes(tmp_path / "not" / "yet" / "there")
    # Others write to the same disk meanwhile; a gibibyte is far from any other disk's answer.
    assert abs(free - stat.f_bavail * stat.f_frsize) < GIB
