"""The emulator notices: every kernel of violations.cu breaks one rule, and the report names it and its place."""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kernels.emulator import build_library
from kernels.emulator.worker import Worker
from tests.kernels.emulator.launching import SOURCE, failure, launch

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="the emulator needs g++")
sanitized = pytest.mark.skipif(
    sys.version_info[:2] != (3, 11), reason="sanitizers look at compiled code: they run on one Python only, 3.11"
)

LINES = SOURCE.read_text(encoding="utf-8").splitlines()
ROOM = 64 * 4  # bytes of dynamic shared memory for 64 floats
MODULE = "tests.kernels.emulator.launching"


def line_of(text: str) -> int:
    """Return the number of the only line of violations.cu with ``text``."""
    found = [number for number, line in enumerate(LINES, 1) if text in line]
    assert len(found) == 1, text
    return found[0]


@pytest.fixture(scope="module")
def fast() -> str:
    return str(build_library(SOURCE))


@pytest.fixture(scope="module")
def tsan() -> Iterator[tuple[Worker, str]]:
    with Worker("tsan") as worker:
        yield worker, str(build_library(SOURCE, "tsan"))


@pytest.fixture(scope="module")
def asan() -> Iterator[tuple[Worker, str]]:
    with Worker("asan") as worker:
        yield worker, str(build_library(SOURCE, "asan"))


def test_kernels_that_break_no_rule_give_their_results(fast: str) -> None:
    assert launch(fast, "reversed")[:128] == [127.0 - i for i in range(128)]
    assert launch(fast, "copied", shared=2048, n=100)[:512] == [float(i) if i < 400 else 0.0 for i in range(512)]
    assert launch(fast, "early_return", n=40)[:40] == [1.0] * 40
    assert launch(fast, "votes")[:128] == [1.0 + 4 * 43] * 128
    assert launch(fast, "turns", grid=4, resident=4, zeroed=True)[0] == 34


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_schedules_change_no_result_of_a_correct_kernel(fast: str, seed: int) -> None:
    assert launch(fast, "reversed", seed=seed) == pytest.approx(launch(fast, "reversed"), nan_ok=True)
    assert launch(fast, "last_block", seed=seed, grid=5, zeroed=True)[0] == 5


def test_another_schedule_runs_another_thread_first(fast: str) -> None:
    def first_failing(seed: int) -> str:
        return failure(fast, "ldmatrix_misaligned", shared=2048, seed=seed).split("thread")[-1]

    assert first_failing(0) == " (0,0,0)]"
    assert len({first_failing(seed) for seed in range(4)}) > 1


def test_threads_at_two_barriers_are_named_with_both_places(fast: str) -> None:
    first = line_of("KERNEL(divergent_barrier)") + 2
    report = failure(fast, "divergent_barrier")
    assert f"violations.cu:{first + 2} (__syncthreads)" in report and f"violations.cu:{first} (__syncthreads)" in report
    assert "block (0,0,0) thread (64,0,0)" in report


def test_deadlock_lists_who_waits_where(fast: str) -> None:
    report = failure(fast, "barrier_some_never_reach")
    first = line_of("KERNEL(barrier_some_never_reach)")
    assert f"32 threads, the first is (0,0,0), at __syncthreads (violations.cu:{first + 2})" in report
    assert f"8 threads, the first is (32,0,0), at __shfl_sync (violations.cu:{first + 4})" in report


def test_blocks_that_poll_for_ever_are_a_deadlock(fast: str) -> None:
    report = failure(fast, "turn_never_passed_on", grid=4, resident=4, zeroed=True)
    assert "deadlock" in report and "block (2,0,0): 1 threads, the first is (0,0,0), at __nanosleep" in report


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ("shuffle_without_own_lane", "lane 16 is not in its own mask 0xffff"),
        ("shuffle_from_outside_the_mask", "reads lane 20, which is not in mask 0xffff"),
        ("shuffle_after_lanes_returned", "deadlock"),
        ("mismatched_collectives", "warp collective mismatch: lane 16"),
        ("overlapping_masks", "overlaps a collective under way with mask 0x1ffff"),
        ("trapped", "__trap at violations.cu"),
        ("endless_recursion", "stack of 65536 bytes overflowed"),
    ],
)
def test_rule_of_a_warp_or_thread_is_checked(fast: str, entry: str, says: str) -> None:
    assert says in failure(fast, entry)


def test_lanes_that_returned_first_are_missed_by_a_full_mask(fast: str) -> None:
    reports = {failure(fast, "shuffle_after_lanes_returned", seed=seed).split("[")[0] for seed in range(1, 6)}
    assert any("names lanes that have returned" in report for report in reports)


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ("copy_never_waited_for", "returned with 1 cp.async copies not waited for"),
        ("copy_misaligned", "cp.async at violations.cu:{}: misaligned"),
        ("copy_to_global", "is not in the block's shared memory"),
        ("ldmatrix_misaligned", "is not aligned to 16 bytes"),
        ("ldmatrix_of_global", "is not in the block's shared memory"),
    ],
)
def test_rule_of_shared_memory_instructions_is_checked(fast: str, entry: str, says: str) -> None:
    line = line_of(f"KERNEL({entry})") + 2
    assert says.format(line) in failure(fast, entry, shared=2048)


def test_mma_needs_a_full_warp(fast: str) -> None:
    assert "fewer than 32 lanes" in failure(fast, "mma_of_half_a_warp", block=16)


@pytest.mark.parametrize("entry", ["uninitialised_static", "uninitialised_dynamic"])
def test_shared_memory_begins_as_nan(fast: str, entry: str) -> None:
    results = launch(fast, entry, shared=ROOM)
    assert results[0] == results[64] == 1.0
    assert all(math.isnan(value) for value in results[1:64])


def test_shared_memory_of_the_block_before_is_gone(fast: str) -> None:
    results = launch(fast, "left_by_the_block_before", grid=2)
    assert results[:128] == [1.0] * 128
    assert all(math.isnan(value) for value in results[128:256])


def test_copies_have_not_arrived_before_their_wait(fast: str) -> None:
    assert all(math.isnan(value) for value in launch(fast, "copied_and_read_too_early", shared=2048)[:512])
    results = launch(fast, "copied_one_group_short", shared=4096)
    assert results[:128] == [4.0 * i for i in range(128)]
    assert all(math.isnan(value) for value in results[128:256])


def test_address_beyond_an_allocation_ends_the_launch(fast: str) -> None:
    assert "illegal or misaligned address" in failure(fast, "beyond_the_output")
    assert "illegal or misaligned address" in failure(fast, "beyond_the_input", n=512)


def test_division_by_zero_ends_the_launch(fast: str) -> None:
    assert "integer division by zero" in failure(fast, "divided_by_zero", n=5)


def test_missing_barrier_shows_in_the_numbers_too(fast: str) -> None:
    assert any(math.isnan(value) for value in launch(fast, "reversed_without_barrier")[:128])
    assert any(math.isnan(value) for value in launch(fast, "copied_without_barrier", shared=2048)[:128])


# ---- Sanitizers

RACES = {
    "reversed_without_barrier": {},
    "reversed_in_warp_without_barrier": {"shared": 2048},
    "copied_without_barrier": {"shared": 2048},
    "last_block_without_fence": {"grid": 4, "zeroed": True},
    "last_block_without_atomic": {"grid": 4, "zeroed": True},
    "same_place_from_every_block": {"grid": 2},
}
ORDERED = {
    "reversed": {},
    "reversed_in_warp": {"shared": 2048},
    "copied": {"shared": 2048},
    "last_block": {"grid": 4, "zeroed": True},
    "static_in_every_block": {"grid": 4},
    "turns": {"grid": 4, "resident": 4, "zeroed": True},
}


@sanitized
@pytest.mark.parametrize("entry", RACES)
def test_unordered_accesses_are_a_race(tsan: tuple[Worker, str], entry: str) -> None:
    worker, library = tsan
    outcome = worker.run(f"{MODULE}:launch", library=library, entry=entry, **RACES[entry])
    assert outcome.kind == "race", outcome
    assert "violations.cu" in outcome.report


@sanitized
@pytest.mark.parametrize("seed", [0, 1])
def test_barriers_and_fences_leave_no_race(tsan: tuple[Worker, str], seed: int) -> None:
    worker, library = tsan
    launches = [{"library": library, "entry": entry, "seed": seed, **options} for entry, options in ORDERED.items()]
    outcome = worker.run(f"{MODULE}:launch_all", launches=launches)
    assert outcome.kind == "done", outcome.report


@sanitized
@pytest.mark.parametrize(
    ("entry", "kind"),
    [
        ("beyond_dynamic", "address"),
        ("beyond_static", "undefined"),
        ("one_beyond_the_input", "address"),
        ("misaligned_vector", "undefined"),
    ],
)
def test_access_out_of_bounds_or_misaligned_is_found_to_the_byte(
    asan: tuple[Worker, str], entry: str, kind: str
) -> None:
    worker, library = asan
    block = {"block": 512} if entry == "one_beyond_the_input" else {}
    outcome = worker.run(f"{MODULE}:launch", library=library, entry=entry, shared=ROOM, **block)
    assert outcome.kind in (kind, "address"), outcome
    assert "violations.cu" in outcome.report


@sanitized
@pytest.mark.parametrize("entry", ["reversed", "copied", "early_return", "votes", "static_in_every_block"])
def test_correct_kernels_pass_the_address_sanitizer(asan: tuple[Worker, str], entry: str) -> None:
    worker, library = asan
    outcome = worker.run(f"{MODULE}:launch", library=library, entry=entry, shared=2048, grid=2)
    assert outcome.kind == "done", outcome.report


@sanitized
def test_job_that_never_ends_is_a_hang_and_the_worker_goes_on(asan: tuple[Worker, str]) -> None:
    worker, _ = asan
    assert worker.run("time:sleep", timeout_s=0.5, secs=60).kind == "error"  # sleep takes no keyword
    assert worker.run("subprocess:call", timeout_s=0.5, args=["sleep", "5"]).kind == "hang"
    assert worker.run("builtins:int").value == 0


def test_error_of_a_job_comes_with_its_traceback() -> None:
    with Worker("fast") as worker:
        outcome = worker.run(f"{MODULE}:launch", library=str(Path("nowhere.so")), entry="reversed")
    assert outcome.kind == "error" and "ImageError" in outcome.report
