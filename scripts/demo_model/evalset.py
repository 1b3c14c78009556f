"""The evaluation scenes and questions, drawn without torch (numpy; OpenCV for the JPEG and blur conditions).

The natural distribution is the training's (22 of the 24 colour-shape pairs, plain camera look, no augmentation)
from streams that training can never use. Nothing is filtered: each scene is asked one question of every kind that
applies to it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from runtime.sources.scene_render import render, sample_look
from runtime.sources.scenes import ALL_PAIRS, HELD_OUT_PAIRS, SEEN_PAIRS, sample_scene
from scripts.demo_model.pictures import FAMILIES, Family, closest_grid, generator, picture_size, size_for_grid
from scripts.demo_model.questions import QA, ask_all

Condition = Literal["natural", "held_out", "jpeg50", "blur", "occluded"]
CONDITIONS: tuple[Condition, ...] = ("natural", "held_out", "jpeg50", "blur", "occluded")
BLUR_SIGMA_PX = 1.0


@dataclass(frozen=True)
class EvalItem:
    """One picture with its questions."""

    image: np.ndarray  # u8 RGB [H, W, 3]
    qas: list[QA]  # (kind, question, answer), at most one of each kind
    grid: tuple[int, int]  # (rows, columns) of the finest scale; (1, 1) for demo-llava
    count: int  # figures in the scene


def eval_items(
    n_scenes: int,
    seed: int,
    family: Family,
    condition: Condition = "natural",
    count: int | None = None,
    grid: tuple[int, int] | None = None,
) -> Iterator[EvalItem]:
    """`n_scenes` unseen scenes of the family's natural distribution, always the same for the same arguments.

    `count` fixes the number of figures, `grid` the tiling (demo-nvila). Conditions: "held_out" (each scene has a
    pair that training never shows; 1 to 4 figures), "jpeg50" (quality 50), "blur" (sigma 1 pixel), "occluded" (a
    grey patch over at most 20 % of a figure).
    """
    rng = generator(
        "evaluate", seed, FAMILIES.index(family), CONDITIONS.index(condition), 9 if count is None else count,
        *(grid or (0, 0)),
    )  # fmt: skip
    for _ in range(n_scenes):
        yield _item(rng, family, condition, count, grid)


def _item(
    rng: np.random.Generator, family: Family, condition: Condition, count: int | None, grid: tuple[int, int] | None
) -> EvalItem:
    width, height = size_for_grid(rng, grid) if grid else picture_size(rng, family)
    if condition == "held_out":
        n = count or int(rng.integers(1, 5))
        scene = sample_scene(rng, width / height, n, ALL_PAIRS, required=HELD_OUT_PAIRS)
    else:
        scene = sample_scene(rng, width / height, count, SEEN_PAIRS)
    image = render(scene, sample_look(rng), rng, width, height)
    if condition not in ("natural", "held_out"):
        from scripts.demo_model import augment

        if condition == "jpeg50":
            image = augment.jpeg(image, 50)
        elif condition == "blur":
            image = augment.blur(image, BLUR_SIGMA_PX)
        else:
            image = augment.occlude(image, scene, rng)
    unseen = () if condition == "held_out" else HELD_OUT_PAIRS
    tiling = closest_grid(width, height) if family == "demo-nvila" else (1, 1)
    return EvalItem(image, ask_all(scene, rng, unseen), tiling, len(scene.figures))


def digest(items: Iterable[EvalItem]) -> str:
    """SHA-256 over the sizes, pixels, questions and answers, in order."""
    total = hashlib.sha256()
    for item in items:
        total.update(repr(item.image.shape).encode())
        total.update(item.image.tobytes())
        total.update(repr(item.qas).encode())
    return total.hexdigest()
