"""The ten kinds of questions about a scene and their only right answers (numpy only)."""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np

from runtime.sources import scenes
from runtime.sources.scenes import COLORS, SHAPES, Figure, Scene

QA = tuple[str, str, str]  # kind, question, answer
Asker = Callable[[Scene, np.random.Generator, Collection[tuple[str, str]]], "QA | None"]

PLURAL = {shape: shape + "s" for shape in SHAPES}
DESCRIBE = "Describe the image."


def _describe(scene: Scene, rng: np.random.Generator, unseen: Collection[tuple[str, str]]) -> QA:
    return "describe", DESCRIBE, scenes.caption(scene)


def _count(scene: Scene, rng: np.random.Generator, unseen: Collection[tuple[str, str]]) -> QA:
    return "count", "How many shapes are there?", str(len(scene.figures))


def _count_shape(scene: Scene, rng: np.random.Generator, unseen: Collection[tuple[str, str]]) -> QA:
    figure = _any(scene, rng)
    shape = figure.shape if figure and rng.random() < 0.7 else SHAPES[rng.integers(len(SHAPES))]
    answer = sum(f.shape == shape for f in scene.figures)
    return "count_shape", f"How many {PLURAL[shape]} are there?", str(answer)


def _count_color(scene: Scene, rng: np.random.Generator, unseen: Collection[tuple[str, str]]) -> QA:
    figure = _any(scene, rng)
    color = figure.color if figure and rng.random() < 0.7 else COLORS[rng.integers(len(COLORS))]
    answer = sum(f.color == color for f in scene.figures)
    return "count_color", f"How many {color} shapes are there?", str(answer)


def _exists(scene: Scene, rng: np.random.Generator, unseen: Collection[tuple[str, str]]) -> QA | None:
    """Half of the pairs asked for are there; of the others most share a colour or a shape with a figure."""
    figure = _any(scene, rng)
    color, shape = COLORS[rng.integers(len(COLORS))], SHAPES[rng.integers(len(SHAPES))]
    if figure and rng.random() < 0.5:
        color, shape = figure.color, figure.shape
    elif figure and rng.random() < 0.6:
        color, shape = (figure.color, shape) if rng.random() < 0.5 else (color, figure.shape)
    if (color, shape) in unseen:
        return None
    found = any((f.color, f.shape) == (color, shape) for f in scene.figures)
    return "exists", f"Is there {_article(color)} {color} {shape}?", "yes" if found else "no"


def _color(scene: Scene, rng: np.random.Generator, unseen: Collection[tuple[str, str]]) -> QA | None:
    figure = _any(scene, rng)
    if figure is None or sum(f.shape == figure.shape for f in scene.figures) != 1:
        return None
    return "color", f"What color is the {figure.shape}?", figure.color


def _shape(scene: Scene, rng: np.random.Generator, unseen: Collection[tuple[str, str]]) -> QA | None:
    figure = _any(scene, rng)
    if figure is None or sum(f.color == figure.color for f in scene.figures) != 1:
        return None
    return "shape", f"What shape is {figure.color}?", figure.shape


def _size(scene: Scene, rng: np.random.Generator, unseen: Collection[tuple[str, str]]) -> QA | None:
    figure = _any(scene, rng)
    if figure is None:
        return None
    return "size", f"What size is the {figure.name}?", "large" if figure.large else "small"


def _where(scene: Scene, rng: np.random.Generator, unseen: Collection[tuple[str, str]]) -> QA | None:
    figure = _any(scene, rng)
    if figure is None or not scenes.place_is_clear(scene, figure):
        return None
    return "where", f"Where is the {figure.name}?", scenes.place(scene, figure)


def _relation(scene: Scene, rng: np.random.Generator, unseen: Collection[tuple[str, str]]) -> QA | None:
    if len(scene.figures) < 2:
        return None
    i, j = rng.permutation(len(scene.figures))[:2]
    a, b = scene.figures[i], scene.figures[j]
    if not scenes.relation_is_clear(scene, a, b):
        return None
    return "relation", f"Where is the {a.name} relative to the {b.name}?", scenes.relation(scene, a, b)


ASKERS: dict[str, Asker] = {
    "describe": _describe,
    "count": _count,
    "count_shape": _count_shape,
    "count_color": _count_color,
    "exists": _exists,
    "color": _color,
    "shape": _shape,
    "size": _size,
    "where": _where,
    "relation": _relation,
}
KINDS = tuple(ASKERS)


def ask(scene: Scene, kind: str, rng: np.random.Generator, unseen: Collection[tuple[str, str]] = ()) -> QA | None:
    """(kind, question, answer) about the scene, or None where this kind cannot be asked unambiguously.

    Pairs in `unseen` are never mentioned in an "exists" question about other figures (training must not learn that
    the held-out pairs do not exist).
    """
    return ASKERS[kind](scene, rng, unseen)


def ask_all(scene: Scene, rng: np.random.Generator, unseen: Collection[tuple[str, str]] = ()) -> list[QA]:
    """At most one question of each kind, in the order of `KINDS`."""
    found = (ask(scene, kind, rng, unseen) for kind in KINDS)
    return [qa for qa in found if qa is not None]


def _any(scene: Scene, rng: np.random.Generator) -> Figure | None:
    return scene.figures[rng.integers(len(scene.figures))] if scene.figures else None


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"
