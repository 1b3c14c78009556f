"""A whole quantisation: resumed after a kill with the same bytes, deterministic, and refused with reasons."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from export import estimate
from export.progress import Progress
from export.quantization import plan, run
from export.quantization.head import MEAN_KL_LIMIT
from export.quantization.run import quantize
from kernels.packing import WeightDigest, unpack
from runtime.errors import EngineError, ExportError, MemoryLimitError, OutputError, UsageError
from tests.export.quantization.quantized_runs import GROUP, Runs, config, decoder_folder, tensors

ROOT = Path(__file__).resolve().parents[3]


# The files of the journal, in order: 1 its description; 2 to 5 mask and states of two prompts, 6 their mark; of each
# layer the next states of both prompts, its tensors, its mark; 15 the head; 16 what was put together. 17 and 18: before
# and after it was placed. At odd steps the file is not there yet.
KILLS = (3, 9, 10, 13, 14, 17, 18)


def test_killed_at_every_layer_and_resumed_it_writes_the_same_bytes(runs: Runs, tmp_path: Path) -> None:
    program = [sys.executable, "-m", "tests.export.quantization.resumed"]
    (tmp_path / "set.txt").write_text("What is this?\nWhy?\n")
    arguments = [str(runs.checkpoint("nvila")), str(tmp_path / "set.txt"), str(tmp_path), *map(str, KILLS)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*program, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    outcomes = {outcome["step"]: outcome for outcome in report["outcomes"]}
    assert tuple(outcomes) == KILLS and report["files"] > 10
    for outcome in outcomes.values():
        assert outcome["signals"] == [signal.SIGKILL, 0], outcome
        assert outcome["same"] and not outcome["left"], outcome
    assert {step: outcome["resumed"] for step, outcome in outcomes.items() if outcome["resumed"]} == {
        10: ["going on at layer 1 of 2"],
        13: ["going on at layer 1 of 2"],
        18: [f"{tmp_path / 'killed-18'}: an earlier run had finished"],
    }


def test_results_do_not_depend_on_place_and_time(runs: Runs, tmp_path: Path) -> None:
    elsewhere = tmp_path / "copy of the checkpoint"
    shutil.copytree(runs.checkpoint("nvila"), elsewhere)
    pictures = tmp_path / "the same pictures"
    shutil.copytree(runs.pictures, pictures)
    request = replace(runs.request("nvila", str(tmp_path / "out")), checkpoint=elsewhere, calibration=pictures)
    first, second = runs.result("nvila").out, quantize(request, Progress()).out
    names = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(second) for path in second.rglob("*") if path.is_file())
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


@pytest.mark.parametrize("layout", ["llava", "original", "nvila"])
def test_record_says_what_was_done(runs: Runs, layout: str) -> None:
    result = runs.result(layout)
    record = config(result.out / "quantization.json")
    assert record == json.loads(json.dumps(result.record))
    assert (record["method"], record["bits"], record["group_size"]) == ("awq", 4, GROUP)
    calibration = record["calibration"]
    assert (calibration["prompts"], calibration["held_out"], calibration["skipped"]) == (3, 1, 0)
    assert len(calibration["digest"]) == 64 and calibration["positions"] > 100
    assert str(runs.folder) not in json.dumps(record)
    stored = tensors(decoder_folder(result.out))
    assert len(record["layers"]) == 2
    for layer in record["layers"]:
        for name, digest in layer["weights"].items():
            stem = next(key.removesuffix(".qweight") for key in stored if key.endswith(f"{name}.qweight"))
            parts = {part: stored[f"{stem}.{part}"] for part in ("qweight", "qzeros", "scales")}
            k, n = parts["qweight"].shape[0], parts["scales"].shape[1]
            weight = unpack(parts, "autoawq-gemm", (n, k), GROUP)
            computed = WeightDigest()
            computed.add(name, weight)
            assert computed.hexdigest() == digest
    assert sum(len(layer["weights"]) for layer in record["layers"]) == 14


@pytest.mark.parametrize("asked", ["auto", "4", "8", "16"])
def test_head_bits_are_measured_and_chosen(
    runs: Runs, asked: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record = runs.result("nvila", head_bits=asked).record
    assert record is not None
    candidates = {item["bits"]: item for item in record["head"]["candidates"]}
    assert set(candidates) == {4, 8, 16}
    assert candidates[4]["mean_kl"] > candidates[8]["mean_kl"] > candidates[16]["mean_kl"]
    assert record["head"]["held_out"] is True and record["head"]["positions"] > 10
    assert record["head"]["mean_kl_limit"] == MEAN_KL_LIMIT
    assert record["head_bits"] == (int(asked) if asked != "auto" else 4)


def test_head_that_four_bits_would_change_gets_eight(runs: Runs, tmp_path: Path) -> None:
    root = tmp_path / "c"
    shutil.copytree(runs.checkpoint("nvila"), root)
    path = root / "llm" / "model.safetensors"
    loaded = load_file(path)
    loaded["lm_head.weight"] *= 4  # sharper distributions
    save_file(loaded, path, {"format": "pt"})
    request = replace(runs.request("nvila", str(tmp_path / "out"), method="rtn"), checkpoint=root)
    record = quantize(request, Progress()).record
    assert record is not None and record["head_bits"] == 8
    four, eight, _ = record["head"]["candidates"]
    assert four["mean_kl"] > MEAN_KL_LIMIT >= eight["mean_kl"]


def test_tied_head_is_measured_on_the_token_table(runs: Runs, tmp_path: Path) -> None:
    from tests.models.tiny import write_nvila

    root = write_nvila(tmp_path / "c", tied=True)
    request = replace(runs.request("nvila", str(tmp_path / "out"), method="rtn"), checkpoint=root)
    record = quantize(request, Progress()).record
    assert record is not None and record["head"]["candidates"][0]["mean_kl"] > 0
    assert "lm_head.weight" not in tensors(tmp_path / "out" / "llm")


def test_a_single_prompt_serves_search_and_head_and_says_so(runs: Runs) -> None:
    record = runs.result("nvila", samples=1).record
    assert record is not None
    assert record["calibration"]["held_out"] == 0 and record["head"]["held_out"] is False


def test_limits_cut_prompts_and_their_number(runs: Runs) -> None:
    record = runs.result("nvila", max_seq_len=70, tokens=100, method="rtn").record
    assert record is not None
    assert (record["calibration"]["prompts"], record["calibration"]["positions"]) == (2, 100)


def test_rounding_without_prompts_measures_nothing(runs: Runs, tmp_path: Path) -> None:
    request = replace(runs.request("nvila", str(tmp_path / "out"), method="rtn", head_bits="8"), calibration=None)
    record = quantize(request, Progress()).record
    assert record is not None
    assert (record["calibration"], record["head_bits"], record["head"]) == (None, 8, {"requested": "8"})


REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"calibration": None}, UsageError, "--method awq searches on calibration prompts"),
    ({"calibration": None, "method": "rtn"}, UsageError, "--head-bits auto measures on calibration prompts"),
    ({"samples": 5000}, UsageError, "--samples is 5000, expected 1 to 4096"),
    ({"device": "tpu"}, UsageError, "--device tpu"),
    ({"device": "cuda:7"}, EngineError, "--device cuda:7: there are 0 CUDA devices"),
    ({"group_size": 128}, ExportError, r"--group-size 128: layers\.0\.self_attn\.q_proj has 64 inputs"),
]


@pytest.mark.parametrize(("changes", "error", "message"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_cannot_be_is_refused_before_work(
    runs: Runs, tmp_path: Path, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    if changes.get("device", "").startswith("cuda") and torch.cuda.is_available():
        pytest.skip("there are CUDA devices here")
    with pytest.raises(error, match=message) as caught:
        quantize(replace(runs.request("nvila", str(tmp_path / "out")), **changes), Progress())
    assert getattr(caught.value, "hint", None) or "samples" in changes
    assert not (tmp_path / "out").exists()


def test_group_size_hint_names_one_that_fits(runs: Runs, tmp_path: Path) -> None:
    with pytest.raises(ExportError) as caught:
        quantize(replace(runs.request("nvila", str(tmp_path / "out")), group_size=128), Progress())
    assert caught.value.hint == "use --group-size 64"


@pytest.mark.parametrize("form", ["awq", "compressed-tensors"])
def test_a_quantised_checkpoint_is_not_quantised_again(runs: Runs, tmp_path: Path, form: str) -> None:
    made = runs.result("nvila", format=form).out
    request = replace(runs.request("nvila", str(tmp_path / "out")), checkpoint=made)
    with pytest.raises(ExportError, match=f"is quantised already \\({form}\\)"):
        quantize(request, Progress())
    unmarked = tmp_path / "unmarked"
    shutil.copytree(made, unmarked)
    fields = config(unmarked / "llm" / "config.json")
    del fields["quantization_config"]
    (unmarked / "llm" / "config.json").write_text(json.dumps(fields))
    with pytest.raises(ExportError):
        quantize(replace(request, checkpoint=unmarked), Progress())


def test_targets_are_never_overwritten_unasked(runs: Runs, tmp_path: Path) -> None:
    out = tmp_path / "out"
    request = replace(runs.request("nvila", str(out), method="rtn", head_bits="4"), calibration=None)
    inside = replace(request, out=request.checkpoint / "awq")
    with pytest.raises(UsageError, match="lies in the checkpoint"):
        quantize(inside, Progress())
    with pytest.raises(UsageError, match="is the checkpoint itself"):
        quantize(replace(request, out=request.checkpoint), Progress())
    out.write_text("a file")
    with pytest.raises(OutputError, match="is not a directory"):
        quantize(replace(request, force=True), Progress())
    out.unlink()
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputError, match="is a directory with other files in it"):
        quantize(replace(request, force=True), Progress())
    (out / "thesis.txt").unlink()
    quantize(request, Progress())
    with pytest.raises(OutputError, match="a quantised checkpoint is there already") as caught:
        quantize(request, Progress())
    assert caught.value.hint == "add --force to replace it"
    (out / "old").write_text("of the first run")
    quantize(replace(request, force=True), Progress())
    assert not (out / "old").exists() and (out / "quantization.json").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_an_interrupted_run_with_other_settings_is_named(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = replace(runs.request("nvila", str(tmp_path / "out"), method="rtn", head_bits="4"), calibration=None)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "model.safetensors")

    with monkeypatch.context() as patch:
        patch.setattr(run, "write_checkpoint", full)
        with pytest.raises(OutputError, match=r"cannot be written: No space left on device \(model\.safetensors\)"):
            quantize(request, Progress())
    assert (tmp_path / "out.partial" / "layer-0001.safetensors").is_file()
    with pytest.raises(OutputError, match="its head_bits is '4', not '8'"):
        quantize(replace(request, head_bits="8"), Progress())
    quantize(replace(request, head_bits="8", force=True), Progress())
    assert config(tmp_path / "out" / "quantization.json")["head_bits"] == 8


def test_activations_that_are_not_finite_name_the_layer(runs: Runs, tmp_path: Path) -> None:
    root = tmp_path / "c"
    shutil.copytree(runs.checkpoint("nvila"), root)
    path = root / "llm" / "model.safetensors"
    loaded = load_file(path)
    loaded["model.layers.1.mlp.down_proj.weight"][:] = 3e38
    save_file(loaded, path, {"format": "pt"})
    with pytest.raises(ExportError, match="layer 1: its output for calibration prompt 0 is not finite"):
        quantize(replace(runs.request("nvila", str(tmp_path / "out")), checkpoint=root), Progress())


def test_too_little_memory_or_disk_is_said_first(runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = runs.request("nvila", str(tmp_path / "out"))
    with monkeypatch.context() as patch:
        patch.setattr(plan, "available_memory", lambda: 300 << 20)
        with pytest.raises(MemoryLimitError, match=r"takes about \d+ MiB, 300 MiB are free"):
            quantize(request, Progress())
    monkeypatch.setattr(estimate.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))  # type: ignore[attr-defined]
    with pytest.raises(OutputError, match="0.0 MB are free on that disk"):
        quantize(request, Progress())
    assert list(tmp_path.iterdir()) == []


def test_every_eighth_prompt_is_held_out() -> None:
    assert plan.split(1) == plan.Split((0,), ())
    assert plan.split(2) == plan.Split((0,), (1,))
    assert plan.split(7).held_out == (6,)
    assert plan.split(20).held_out == (7, 15)
    assert sorted(plan.split(20).searched + plan.split(20).held_out) == list(range(20))


def test_search_never_sees_what_is_held_out(runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from export.quantization import search

    seen: list[list[int]] = []
    real = search.search_layer

    def watched(layer: Any, batches: Any, settings: Any) -> Any:
        seen.append([batch.hidden.shape[1] for batch in batches])
        return real(layer, batches, settings)

    monkeypatch.setattr(search, "search_layer", watched)
    lines = [{"text": "x" * (10 + 7 * index)} for index in range(4)]
    (tmp_path / "set.jsonl").write_text("\n".join(map(json.dumps, lines)))
    request = runs.request("nvila", str(tmp_path / "out"), calibration=tmp_path / "set.jsonl", samples=4, clip=False)
    record = quantize(request, Progress()).record
    assert record is not None and record["calibration"]["held_out"] == 1 and record["settings"]["clip"] is False
    lengths = np.array(seen)
    assert lengths.shape == (2, 3) and (lengths[0] == lengths[1]).all()
    assert record["calibration"]["positions"] - lengths[0].sum() == record["head"]["positions"]
