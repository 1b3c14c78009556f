"""The AWQ benchmark: planted outliers compute the same, few scenes of one seed tell the methods apart."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.torch
pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch  # noqa: E402
from torch import nn  # noqa: E402

from scripts.bench import awq_accuracy  # noqa: E402
from scripts.bench.outliers import critical_channels, norms, plant, plant_in_decoder, random_channels  # noqa: E402
from scripts.demo_model.evalset import digest, eval_items  # noqa: E402
from scripts.demo_model.evaluation import SEED  # noqa: E402
from tests.models.awq.tiny_layers import decoder, prompts  # noqa: E402


@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_planted_outliers_leave_the_logits_and_stand_out(family: str) -> None:
    model, embeds = decoder(family, layers=2), prompts(64)[0]
    planted = copy.deepcopy(model)
    channels = random_channels(planted)
    plant_in_decoder(planted, channels)
    assert [len(chosen) for chosen in channels] == [2] * 4  # 4 of 128
    before, after = (item(inputs_embeds=embeds).logits for item in (model, planted))
    assert (before - after).abs().max() < 1e-5
    for (norm, linears), (old, old_linears), chosen in zip(norms(planted), norms(model), channels, strict=True):
        assert torch.equal(norm.weight[chosen], old.weight[chosen] * 64)
        for linear, old_linear in zip(linears, old_linears, strict=True):
            assert torch.equal(linear.weight[:, chosen] * 64, old_linear.weight[:, chosen])


def test_a_norms_bias_is_planted_too() -> None:
    torch.manual_seed(0)
    norm, linear, x = nn.LayerNorm(8), nn.Linear(8, 3), torch.randn(5, 8)
    nn.init.normal_(norm.bias)
    before = linear(norm(x))
    plant(norm, [linear], torch.tensor([1, 6]))
    torch.testing.assert_close(linear(norm(x)), before)
    assert norm(x)[:, 1].abs().max() > 8


def test_the_channel_that_the_loss_needs_is_the_first_critical_one() -> None:
    model, embeds = decoder("qwen2", layers=1), prompts(64)[0]
    layer: Any = model.model.layers[0]
    for (_, linears), needed in zip(norms(model), (40, 7), strict=True):
        for linear in linears:
            kept = linear.weight[:, needed].clone()
            linear.weight.zero_()
            linear.weight[:, needed] = kept
    expected, before = model(inputs_embeds=embeds).logits, layer.mlp.up_proj.weight.clone()
    # a slope from the start, and next to no loss before a channel is gone
    found = critical_channels(model, lambda: (model(inputs_embeds=embeds).logits - expected - 1e-3).square().sum())
    assert [int(chosen[0]) for chosen in found] == [40, 7]
    assert [len(set(chosen.tolist())) for chosen in found] == [2, 2]
    assert torch.equal(layer.mlp.up_proj.weight, before)
    assert not layer.input_layernorm._forward_hooks


def test_ratio_of_mean_kl_is_weighted_by_tokens_and_bracketed() -> None:
    ours = awq_accuracy.Score(kl=[1.0, 2.0, 3.0], tokens=[1, 1, 4])
    theirs = awq_accuracy.Score(kl=[2.0, 4.0, 6.0], tokens=[1, 1, 4])
    assert ours.mean_kl == 1.0
    assert awq_accuracy.kl_ratio(ours, theirs) == {"ratio": 0.5, "interval": [0.5, 0.5]}


def line(outliers: str, rtn: float, awq: float, ratio: float, moved: float = 0.0) -> dict[str, Any]:
    row: dict[str, Any] = {"outliers": outliers, "fp32_logits_moved": moved, "kl_awq_over_rtn": {"ratio": ratio}}
    for method, points in (("rtn", rtn), ("awq", awq)):
        row[method] = {"against_fp32_points": {"points": points}}
    return row


@pytest.mark.parametrize(
    ("row", "right"),
    [
        (line("none", 0, 0, 1.05), True),
        (line("none", 0, 0, 1.06), False),
        (line("critical", -5, -1, 0.2), True),
        (line("critical", -4.9, -1, 0.2), False),
        (line("critical", -5, -1.1, 0.2), False),
        (line("critical", -5, -1, 0.21), False),
        (line("critical", -5, -1, 0.2, moved=2e-4), False),
        (line("random", 0, 0, 0.2), True),
        (line("random", 0, 0, 0.21), False),
    ],
)
def test_limits_are_the_ones_that_are_promised(row: dict[str, Any], right: bool) -> None:
    assert awq_accuracy.passed(row) is right


def test_few_scenes_run_through_and_tell_the_methods_apart(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "lines.jsonl"
    command = ["--families", "demo-llava", "--group-sizes", "128", "--outliers", "random", "--scenes", "6"]
    monkeypatch.setattr("sys.argv", ["awq_accuracy.py", *command, "--calibration-scenes", "12", "--out", str(out)])
    awq_accuracy.main()
    row = json.loads(out.read_text())
    assert json.loads(capsys.readouterr().out) == row
    assert row["questions"] > 30 and row["answer_tokens"] > row["questions"]
    assert row["fp32_logits_moved"] <= 1e-4
    assert 0 < row["awq"]["kl_nats"] < row["rtn"]["kl_nats"] / 2, "outliers cost round to nearest a multiple"
    assert row["calibration_sha256"] == digest(eval_items(12, awq_accuracy.CALIBRATION_SEED, "demo-llava"))
    assert row["sha256"] == digest(eval_items(6, SEED, "demo-llava"))


def test_calibration_pictures_are_none_of_the_tests() -> None:
    for family in ("demo-llava", "demo-nvila"):
        tested, used = (
            {item.image.tobytes() for item in eval_items(60, seed, family)}
            for seed in (SEED, awq_accuracy.CALIBRATION_SEED)
        )
        assert len(tested) == len(used) == 60
        assert not tested & used
