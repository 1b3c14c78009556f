"""Greedy exact match of a demo model, per kind of question, with 95 % intervals.

Answers are scored by teacher forcing: every token of the right answer (and the end token) is the argmax given the
right tokens before it, which holds exactly when greedy decoding writes the right answer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch

from scripts.demo_model.architecture import DemoModel
from scripts.demo_model.batches import prepare
from scripts.demo_model.evalset import EvalItem, digest, eval_items
from scripts.demo_model.packing import Packer, Row
from scripts.demo_model.pictures import GRIDS, Family
from scripts.demo_model.questions import KINDS

BATCH = 50
SEED = 2026
Outcome = list[tuple[str, bool]]  # (kind, right) of one scene's questions


@dataclass(frozen=True)
class Sizes:
    """How many scenes of each part."""

    natural: int = 2500
    per_count: int = 600
    per_grid: int = 300
    condition: int = 600


@torch.no_grad()
def outcomes(model: DemoModel, packer: Packer, items: Sequence[EvalItem]) -> list[Outcome]:
    """Which questions of which scene the model answers exactly."""
    result: list[Outcome] = []
    for start in range(0, len(items), BATCH):
        result += _batch_outcomes(model, packer, items[start : start + BATCH])
    return result


def _batch_outcomes(model: DemoModel, packer: Packer, items: Sequence[EvalItem]) -> list[Outcome]:
    device = next(model.parameters()).device
    vision = prepare([item.image for item in items], packer.family)
    index = (vision.index.fine.to(device), vision.index.coarse.to(device)) if vision.index else ()
    tokens = model.image_tokens(model.features(vision.tiles.to(device), *index))
    rows = [Row(n, [(q, a) for _, q, a in item.qas]) for n, item in zip(vision.tokens, items, strict=True)]
    packed = packer.pack(rows)
    embeds = model.embed(packed.ids.to(device), packed.is_image.to(device), tokens)
    hidden = model.decode(embeds, packed.visible.to(device), packed.positions.to(device))
    asked = packed.labels >= 0
    guess = model.llm.lm_head(hidden[asked.to(device)]).argmax(-1).cpu()
    wrong = torch.zeros_like(asked)
    wrong[asked] = guess != packed.labels[asked]
    return [
        [(kind, not bool(wrong[b][packed.segment[b] == j + 1].any())) for j, (kind, _, _) in enumerate(item.qas)]
        for b, item in enumerate(items)
    ]


def quick_scores(model: DemoModel, packer: Packer, scenes: int = 200) -> dict[str, float]:
    """Percentages on a small fixed set, for the log (not the set of `full_evaluation`)."""
    items = list(eval_items(scenes, SEED + 1, packer.family))
    summary = summarize(outcomes(model, packer, items))
    return {"mean": summary["mean"]["percent"]} | {kind: row["percent"] for kind, row in summary["kinds"].items()}


def full_evaluation(model: DemoModel, packer: Packer, sizes: Sizes | None = None, seed: int = SEED) -> dict[str, Any]:
    """Everything that the model card reports, as one JSON-able record."""
    sizes, family = sizes or Sizes(), packer.family
    natural = list(eval_items(sizes.natural, seed, family))
    record: dict[str, Any] = {"family": family, "seed": seed, "scenes": sizes.natural}
    record["sha256"] = digest(natural)
    found = outcomes(model, packer, natural)
    record["natural"] = summarize(found)
    record["describe_by_count"] = {}
    for count in range(5):
        items = list(eval_items(sizes.per_count, seed, family, count=count))
        rights = [right for scene in outcomes(model, packer, items) for kind, right in scene if kind == "describe"]
        record["describe_by_count"][str(count)] = proportion(rights) | {"sha256": digest(items)}
    for condition in ("held_out", "jpeg50", "blur", "occluded"):
        items = list(eval_items(sizes.condition, seed, family, condition=condition))  # type: ignore[arg-type]
        record[condition] = summarize(outcomes(model, packer, items)) | {"sha256": digest(items)}
    if family == "demo-nvila":
        record["grids"] = {f"{r}x{c}": _grid_score(model, packer, sizes, seed, family, (r, c)) for r, c in GRIDS}
        record["mean_over_grids"] = round(float(np.mean([g["mean"]["percent"] for g in record["grids"].values()])), 2)
    return record


def _grid_score(
    model: DemoModel, packer: Packer, sizes: Sizes, seed: int, family: Family, grid: tuple[int, int]
) -> dict[str, Any]:
    items = list(eval_items(sizes.per_grid, seed, family, grid=grid))
    return summarize(outcomes(model, packer, items)) | {"sha256": digest(items)}


def summarize(found: Sequence[Outcome]) -> dict[str, Any]:
    """{"mean": over kinds, equally weighted; "kinds": each} in percent with 95 % intervals."""
    by_kind: dict[str, list[bool]] = defaultdict(list)
    for scene in found:
        for kind, right in scene:
            by_kind[kind].append(right)
    kinds = {kind: proportion(by_kind[kind]) for kind in KINDS if kind in by_kind}
    mean = float(np.mean([row["percent"] for row in kinds.values()]))
    low, high = _bootstrap(found)
    interval = [round(low, 2), round(high, 2)]
    return {"mean": {"percent": round(mean, 2), "interval": interval, "scenes": len(found)}, "kinds": kinds}


def proportion(rights: Iterable[bool]) -> dict[str, Any]:
    """Percent right with its Wilson 95 % interval and the number of questions."""
    values = list(rights)
    n, k, z = len(values), sum(values), 1.96
    if n == 0:
        return {"percent": float("nan"), "interval": [0.0, 100.0], "questions": 0}
    p = k / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    interval = [round(100 * float(middle - half), 2), round(100 * float(middle + half), 2)]
    return {"percent": round(100 * p, 2), "interval": interval, "questions": n}


def _bootstrap(found: Sequence[Outcome], draws: int = 1000) -> tuple[float, float]:
    """95 % interval of the mean over kinds: scenes are resampled: a scene's answers go together."""
    asked = np.zeros((len(found), len(KINDS)))
    right = np.zeros_like(asked)
    for i, scene in enumerate(found):
        for kind, ok in scene:
            asked[i, KINDS.index(kind)] += 1
            right[i, KINDS.index(kind)] += ok
    used = asked.sum(0) > 0
    rng = np.random.default_rng(0)
    counts = rng.multinomial(len(found), np.full(len(found), 1 / len(found)), size=draws)
    means = 100 * (counts @ right[:, used] / np.maximum(counts @ asked[:, used], 1)).mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def mistakes(
    model: DemoModel, packer: Packer, items: Sequence[EvalItem], limit: int = 20
) -> list[tuple[int, str, str]]:
    """(scene, question, right answer) of the first wrong answers, for reading."""
    found = outcomes(model, packer, items)
    wrong = (
        (i, item.qas[j][1], item.qas[j][2])
        for i, (item, scene) in enumerate(zip(items, found, strict=True))
        for j, (_, ok) in enumerate(scene)
        if not ok
    )
    return list(islice(wrong, limit))
