"""The benchmark of real model sizes: limits are kept, peaks are seen, and the whole path runs on a tiny shape."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from scripts.bench.full_shape_sizes import SHAPES
from scripts.bench.full_shape_watch import run_limited

MIB = 1 << 20
HOLD = "import signal, sys; held = bytearray({size}); held[::4096] = bytes([1]) * len(held[::4096]); {then}"


def held(size: int, then: str = "sum(range(10**7)); print('done')") -> list[str]:  # is looked at meanwhile
    return [sys.executable, "-S", "-c", HOLD.format(size=size, then=then)]


def test_peak_of_a_child_is_what_it_held(tmp_path: Path) -> None:
    runs = [run_limited(held(size * MIB), 1024 * MIB, tmp_path) for size in (16, 116)]
    assert all(run.code == 0 and not run.killed and run.stdout == "done\n" for run in runs)
    assert runs[1].peak_mb - runs[0].peak_mb == pytest.approx(100, abs=12)


def test_child_above_the_limit_is_killed(tmp_path: Path) -> None:
    run = run_limited(held(200 * MIB, "signal.pause()"), 100 * MIB, tmp_path)
    assert run.killed
    assert run.code == -9
    assert run.peak_mb > 100


def test_grandchild_above_the_limit_is_killed_too(tmp_path: Path) -> None:
    inner = held(200 * MIB, "signal.pause()")
    run = run_limited(
        [sys.executable, "-S", "-c", f"import subprocess; subprocess.run({inner!r})"], 100 * MIB, tmp_path
    )
    assert run.killed
    assert run.peak_mb > 100


def test_failure_is_reported_with_its_last_words(tmp_path: Path) -> None:
    run = run_limited([sys.executable, "-c", "raise SystemExit('no disk')"], 100 * MIB, tmp_path)
    assert (run.code, run.killed, run.stderr_tail.strip()) == (1, False, "no disk")


def test_vocabulary_is_made_of_distinct_tokens_and_their_merges() -> None:
    pytest.importorskip("torch")
    from scripts.bench.full_shape_checkpoint import byte_tokens

    largest = max(shape.decoder["vocab_size"] for shape in SHAPES.values())
    tokens = list(itertools.islice(byte_tokens(), largest))
    texts = [token for token, _ in tokens]
    assert len(set(texts)) == largest
    assert all(pair is None or "".join(pair) == token for token, pair in tokens)
    assert sum(pair is None for _, pair in tokens) == 256


@pytest.mark.torch
def test_tiny_shape_goes_from_checkpoint_to_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from scripts.bench import full_shape

    arguments = ["tiny-nvila", "--work", str(tmp_path / "work"), "--tokens", "3", "--limit-gib", "2"]
    monkeypatch.setattr("sys.argv", ["full_shape.py", *arguments, "--out", str(tmp_path / "lines.jsonl")])
    assert full_shape.main() == 0
    rows = [json.loads(line) for line in (tmp_path / "lines.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == ["write", "build", "session"]
    assert capsys.readouterr().out.splitlines() == (tmp_path / "lines.jsonl").read_text().splitlines()
    _, build, session = rows
    assert all(row["exit_code"] == 0 and 0 < row["peak_mb"] < 2048 for row in rows)
    assert session["finite"] is True
    assert 1 <= session["completion_tokens"] <= 3
    assert session["image_tokens"] == 9 * 4  # a square picture: 3 x 3 blocks of 4 x 4 patches, folded 2 x 2
    # Two of four layers were written; the other two add what two layers of this shape take in int4.
    hidden, ffn, narrow = 128, 256, 64
    values = 2 * hidden * hidden + 2 * hidden * narrow + 3 * hidden * ffn
    layers = 2 * (values / 2 + values / 128 * 4.5 + 2 * 4 * hidden) / 1e6
    assert build["extrapolated"]["layers"] == 4
    np.testing.assert_allclose(build["extrapolated"]["bundle_mb"] - build["bundle_mb"], layers, atol=0.11)
    assert list((tmp_path / "work").iterdir()) == [], "nothing stays without --keep"
