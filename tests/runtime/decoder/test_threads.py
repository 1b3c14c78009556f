"""Default thread counts from hand-made system folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.decoder.threads import cores_are_ours, default_threads


@pytest.fixture
def cpu_root(tmp_path: Path) -> Path:
    """Four cores of two hyper-threads: CPU n and n + 4 are siblings."""
    root = tmp_path / "cpu"
    for cpu in range(8):
        folder = root / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{cpu % 4},{cpu % 4 + 4}\n")
    (root / "isolated").write_text("2-3,6-7\n")
    return root


def threads(cpu_root: Path, cpus: set[int], cgroup: Path | None = None, membership: str = "0::/a/b\n") -> int:
    file = cpu_root.parent / "membership"
    file.write_text(membership)
    return default_threads(
        frozenset(cpus), cpu_root=cpu_root, cgroup_root=cgroup or cpu_root.parent / "none", membership=file
    )


def test_hyper_threads_of_a_core_count_once(cpu_root: Path) -> None:
    assert threads(cpu_root, set(range(8))) == 4
    assert threads(cpu_root, {0, 4}) == 1
    assert threads(cpu_root, {1, 2, 6}) == 2


def test_cpus_without_topology_count_each(tmp_path: Path) -> None:
    assert threads(tmp_path / "nothing", {0, 1, 2}) == 3


@pytest.mark.parametrize(
    ("folder", "quota", "expected"),
    [("a/b", "150000 100000", 1), ("a", "200000 100000", 2), (".", "50000 100000", 1), ("a/b", "max 100000", 4)],
)
def test_quota_of_any_level_of_the_cgroup_bounds_the_threads(
    cpu_root: Path, tmp_path: Path, folder: str, quota: str, expected: int
) -> None:
    level = tmp_path / "cgroup" / folder
    level.mkdir(parents=True)
    (level / "cpu.max").write_text(quota)
    assert threads(cpu_root, set(range(8)), tmp_path / "cgroup") == expected


def test_version_one_quota_counts_too(cpu_root: Path, tmp_path: Path) -> None:
    level = tmp_path / "cgroup" / "cpu" / "box"
    level.mkdir(parents=True)
    (level / "cpu.cfs_quota_us").write_text("300000\n")
    (level / "cpu.cfs_period_us").write_text("100000\n")
    membership = "3:memory:/box\n2:cpu,cpuacct:/box\n"
    assert threads(cpu_root, set(range(8)), tmp_path / "cgroup", membership) == 3


def test_cores_are_ours_only_when_all_are_isolated(cpu_root: Path) -> None:
    assert cores_are_ours(frozenset({2, 7}), cpu_root=cpu_root)
    assert not cores_are_ours(frozenset({1, 2}), cpu_root=cpu_root)
    assert not cores_are_ours(frozenset(), cpu_root=cpu_root)


def test_this_machine_gives_at_least_one_thread() -> None:
    assert default_threads() >= 1
