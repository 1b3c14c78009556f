"""A training step of LLaVA: its loss by hand, where gradients go, and the same under FSDP on two ranks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from models.fusion import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from tests.models.training import arguments, batch, first_stage, small_model, step

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tower(checkpoints: Any) -> Path:
    return checkpoints("nvila", clip=True) / "vision_tower"


def by_hand(logits: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Mean of -log p(label) in float64, each label predicted by the position before it."""
    log_probabilities = logits.double().log_softmax(-1)
    losses = []
    for row, (ids, labels, mask) in enumerate(
        zip(inputs["input_ids"], inputs["labels"], inputs["attention_mask"], strict=True)
    ):
        aligned: list[int] = []
        for token, label in zip(ids[mask].tolist(), labels[mask].tolist(), strict=True):
            aligned += [IGNORE_INDEX] * 16 if token == IMAGE_TOKEN_INDEX else [label]  # 16 patches of an image
        for position, label in enumerate(aligned):
            if label != IGNORE_INDEX:
                losses.append(-log_probabilities[row, position - 1, label])
    assert len(losses) == int((inputs["labels"] != IGNORE_INDEX).sum()) == 8
    return torch.stack(losses).mean()


def test_behaviour_30_the_loss_is_the_cross_entropy_of_the_aligned_labels(tower: Path) -> None:
    model, inputs = first_stage(tower), batch()
    output = model(**inputs)
    assert torch.isfinite(output.loss)
    assert output.loss.item() == pytest.approx(by_hand(output.logits, inputs).item(), rel=1e-6)


def test_behaviour_30_gradients_reach_projector_and_input_embeddings_alone(tower: Path) -> None:
    model, inputs = first_stage(tower), batch()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    step(model, inputs)
    reached = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert reached == {"model.embed_tokens.weight"} | {
        f"model.mm_projector.{i}.{p}" for i in (0, 2) for p in ("weight", "bias")
    }
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == reached
    rows = model.get_input_embeddings().weight.grad.abs().sum(dim=1)
    # every token that stands before a label of its row, and no other
    seen: set[int] = set()
    for ids, labels in zip(inputs["input_ids"].tolist(), inputs["labels"].tolist(), strict=True):
        last = max(place for place, label in enumerate(labels) if label != IGNORE_INDEX)
        seen |= {token for token in ids[:last] if token != IMAGE_TOKEN_INDEX}
    assert set(torch.where(rows > 0)[0].tolist()) == seen


def test_behaviour_30_untuned_everything_but_the_tower_learns(tower: Path) -> None:
    model = small_model()
    model.get_model().initialize_vision_modules(arguments(tower))
    step(model.train(), batch())
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert without == {name for name, _ in model.named_parameters() if ".vision_tower." in name}
    assert all(p.grad.abs().sum() > 0 for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("part", ["mm_projector.0.weight", "mm_projector.2.bias", "embed_tokens.weight"])
def test_behaviour_30_gradients_are_those_of_finite_differences(part: str, tower: Path) -> None:
    model, inputs = first_stage(tower).double(), batch()
    inputs["images"] = inputs["images"].double()
    parameter = dict(model.model.named_parameters())[part]
    model(**inputs).loss.backward()
    place = int(parameter.grad.abs().argmax())
    losses = []
    with torch.no_grad():
        for shift in (1e-4, -1e-4):
            parameter.view(-1)[place] += shift
            losses.append(by_hand(model(**inputs).logits, inputs).item())
            parameter.view(-1)[place] -= shift
    slope = (losses[0] - losses[1]) / 2e-4
    assert slope != 0
    assert parameter.grad.view(-1)[place].item() == pytest.approx(slope, rel=5e-3)  # norms are computed in float32


def test_behaviour_30_two_fsdp_ranks_take_the_same_step(tower: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(ROOT)}
    results, meeting = [tmp_path / f"{rank}.safetensors" for rank in range(2)], tmp_path / "meeting"
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.models.training", str(rank), "2", *map(str, (meeting, tower, results[rank]))],
            cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        said = [child.communicate(timeout=300)[0] for child in children]
    finally:
        for child in children:
            child.kill()
    assert [child.returncode for child in children] == [0, 0], "\n".join(said)
    alone = first_stage(tower, fsdp=["full_shard"])
    loss = step(alone, batch())
    ranks = [load_file(path) for path in results]
    assert torch.stack([found.pop("loss") for found in ranks]).mean().item() == pytest.approx(loss.item(), rel=1e-5)
    frozen = {f"tower.{name}": tensor for name, tensor in alone.get_vision_tower().state_dict().items()}  # type: ignore[union-attr]
    wanted = {name: parameter.detach() for name, parameter in alone.named_parameters()} | frozen
    assert not any("vision_tower" in name for name, _ in alone.named_parameters())
    for found in ranks:
        assert found.keys() == wanted.keys()
        for name, tensor in wanted.items():
            torch.testing.assert_close(found[name], tensor, atol=1e-6, rtol=1e-5, msg=name)
    untouched = dict(first_stage(tower).named_parameters())
    assert not torch.equal(ranks[0]["model.mm_projector.0.weight"], untouched["model.mm_projector.0.weight"])
