"""Mutants: the rules find what they should in a text, every kind has its places, ten drawn by the commit are caught."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from kernels.emulator.__main__ import chosen, main
from kernels.emulator.mutants.kinds import KINDS
from kernels.emulator.mutants.planted import planted
from kernels.emulator.mutants.report import REPORT, equivalents, plain, table
from kernels.emulator.mutants.rules import by_rule, of_file
from kernels.emulator.mutants.source import read
from kernels.emulator.mutants.trial import Trials, Verdict

ROOT = Path(__file__).resolve().parents[3]

TEXT = """
// if (n < N) __syncthreads();
__global__ void k(float* y, int n, int N) {
  if (n >= N) return;
  if (n < 2) { y[n] = 1.f; }
  for (int i = 0; i < n; i++) y[i] = n < N ? y[i] : 0.f;
  const bool inside = n < N && n >= 0;
  cp_async16(y, y + 4, inside);
  cp_async16(y, y + 4, true);
  cp_async_wait<1>();
  __syncthreads();
  const int bad = __syncthreads_or(n > 3);
  __threadfence();
  if (n > 7) __syncthreads();
  if (y[0] > 0.f) y[1] = 1.f;
  if (inside) atomicAdd(y + f(n, 1), 2.f);
}
"""
CHANGED = [
    ("guard", "n >= N", "false"),
    ("guard", "n < 2", "true"),
    ("guard", "n < N", "true"),
    ("guard", "n < N && n >= 0", "true"),
    ("guard", "inside", "true"),
    ("wait", "cp_async_wait<1>()", "((void)0)"),
    ("barrier", "__syncthreads()", "((void)0)"),
    ("barrier", "__syncthreads_or(n > 3)", "(n > 3)"),
    ("fence", "__threadfence()", "((void)0)"),
    ("barrier", "__syncthreads()", "((void)0)"),
]


def test_rules_find_every_guard_barrier_wait_fence_and_atomic(tmp_path: Path) -> None:
    (tmp_path / "k.cu").write_text(TEXT, encoding="utf-8")
    found = of_file(tmp_path, "k.cu")
    assert [(mutant.rule, mutant.original, mutant.replacement) for mutant in found[:-1]] == CHANGED
    assert (found[-1].rule, found[-1].replacement) == ("atomic", "(*(y + f(n, 1)))")
    for mutant in found:
        mutated = mutant.apply(TEXT)
        assert mutated == TEXT[: mutant.start] + mutant.replacement + TEXT[mutant.end :]


def test_mutant_of_another_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "k.cu").write_text(TEXT, encoding="utf-8")
    with pytest.raises(ValueError, match="has changed"):
        of_file(tmp_path, "k.cu")[0].apply(TEXT[1:])


def test_a_file_without_mutants_is_refused_and_nothing_passes_for_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--mutants", "--file", "nosuch"])
    shown = capsys.readouterr()
    assert (left.value.code, shown.out) == (2, "") and "nosuch" in shown.err


def test_mutants_have_names_of_their_own() -> None:
    names = Counter(mutant.name for mutant in [*by_rule(), *planted()])
    assert [name for name, count in names.items() if count > 1] == []


def test_every_kind_is_planted_in_two_families() -> None:
    judges = defaultdict(set)
    for mutant in planted():
        judges[mutant.rule].add(mutant.sources or mutant.file)
    assert len(KINDS) == 24
    assert {rule: places for rule, places in judges.items() if len(places) < 2} == {}


def test_report_covers_every_mutant_and_nothing_escaped_but_what_is_listed() -> None:
    rows = {row["name"]: row for row in map(json.loads, REPORT.read_text(encoding="utf-8").splitlines())}
    names = {mutant.name for mutant in [*by_rule(), *planted()]}
    assert names - set(rows) == set(), "new mutants: python -m kernels.emulator --mutants"
    escaped = {name for name in names if not rows[name]["mode"]}
    assert escaped <= set(equivalents())
    assert len(escaped) <= 0.05 * len(names)
    assert all(reason for reason in equivalents().values())


def test_table_counts_what_caught_what() -> None:
    verdicts = [
        Verdict("a", "guard", 1, "fast", "numbers", ""),
        Verdict("b", "guard", 2, "tsan", "race", ""),
        Verdict("c", "planted: x", 3, "", "", ""),
    ]
    lines = [line.split() for line in table(verdicts).splitlines()]
    assert lines[0] == ["rule", "fast", "numbers", "tsan", "race", "none", "all"]
    assert lines[1] == ["guard", "1", "1", "0", "2"] and lines[2] == ["planted:", "0", "0", "1", "1"]


def test_command_lists_and_explains(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list", "--file", "gemv_tile.cuh"]) == 0
    assert "gemv_tile.cuh: barrier: __syncthreads() -> ((void)0)" in capsys.readouterr().out
    with pytest.raises(SystemExit) as left:
        main(["--help"])
    assert left.value.code == 0 and "--mutants" in capsys.readouterr().out


def test_draw_is_the_same_for_the_same_seed() -> None:
    assert chosen(count=10, seed="abc") == chosen(count=10, seed="abc") != chosen(count=10, seed="abd")


@pytest.mark.skipif(shutil.which("g++") is None, reason="the emulator needs g++")
@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="compiles and runs sanitizers: on one Python only, 3.11")
def test_ten_mutants_of_this_commit_are_caught() -> None:
    asked = ["git", "rev-parse", "HEAD"]
    commit = subprocess.run(asked, capture_output=True, text=True, check=False, cwd=ROOT, timeout=60).stdout.strip()
    mutants = [mutant for mutant in chosen(count=10, seed=commit or "0") if mutant.name not in equivalents()]
    with Trials() as trials:
        verdicts = [trials.judge(mutant, thorough=False) for mutant in mutants]
        again = [trials.judge(m, thorough=True) for m, v in zip(mutants, verdicts, strict=True) if not v.mode]
    assert [verdict.name for verdict in again if not verdict.mode] == []
    assert all(verdict.mode != "compiler" for verdict in [*verdicts, *again])


def test_places_are_in_the_sources() -> None:
    for mutant in planted():
        text = read(ROOT / "kernels" / "csrc", mutant.file)
        assert mutant.apply(text) != text


def test_report_names_no_folder_and_no_address_of_a_machine() -> None:
    told = "SUMMARY: AddressSanitizer: use-after-poison /opt/src/attn.cuh:162 in store(uint4*): 0x7f67726cd000"
    assert plain(told) == "SUMMARY: AddressSanitizer: use-after-poison attn.cuh:162 in store(uint4*): 0x…"
    assert plain("64.0 / 2.5 times the bound") == "64.0 / 2.5 times the bound"
    details = [json.loads(line)["detail"] for line in REPORT.read_text(encoding="utf-8").splitlines()]
    assert [plain(detail) for detail in details] == details
