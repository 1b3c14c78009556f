"""The benchmarks run, and measure what they say: small runs on the embedded bundles."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LLAVA = ROOT / "runtime" / "demo" / "demo-llava"
LEAK_BYTES = 256 * 1024


def test_memory_slope_sees_a_planted_leak() -> None:
    # A process of its own: in this one, memory that earlier tests gave back would swallow the leak.
    command = [
        sys.executable,
        ROOT / "scripts" / "bench" / "memory_slope.py",
        LLAVA,
        "--captions",
        "160",
        "--warmup",
        "80",
    ]
    leak = ["--leak-bytes", str(LEAK_BYTES), "--limit-bytes", str(LEAK_BYTES // 2)]
    run = subprocess.run([*command, *leak], capture_output=True, text=True, check=False)
    row = json.loads(run.stdout)
    assert (run.returncode, row["passed"]) == (1, False), run.stderr
    assert row["slope_bytes_per_caption"] > LEAK_BYTES // 2


@pytest.mark.torch
def test_accuracy_compares_the_same_questions_of_torch_and_the_bundle(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from scripts.bench import accuracy

    monkeypatch.setattr("sys.argv", ["accuracy.py", str(LLAVA), "--scenes", "6", "--kl-scenes", "3", "--threads", "1"])
    assert accuracy.main() == 0
    row = json.loads(capsys.readouterr().out)
    kinds = row["session_int4"]["kinds"]
    assert {kind: score["questions"] for kind, score in kinds.items()} == {
        kind: score["questions"] for kind, score in row["torch_fp32"]["kinds"].items()
    }
    assert sum(score["questions"] for score in kinds.values()) == row["questions"] > 30
    assert 0 < row["logit_kl_nats"]["mean"] < 0.05, "int4 is near fp32, and not the same"


@pytest.mark.torch
def test_paired_difference_counts_each_way() -> None:
    from scripts.bench.accuracy import paired_difference

    ours = [[("count", True), ("describe", False)], [("count", True), ("describe", True)]]
    theirs = [[("count", True), ("describe", True)], [("count", False), ("describe", True)]]
    found = paired_difference(ours, theirs, draws=50)
    assert (found["only_torch_right"], found["only_bundle_right"], found["points"]) == (1, 1, 0.0)
