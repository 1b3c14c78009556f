"""Scenes of coloured shapes: what is in the picture, and the words that describe it.

The demo models are trained on these scenes, the demo video shows them, and the `synthetic://` source streams them,
so the text that the runtime prints can be checked against the truth. This file is the content (which figures,
where, which caption); `scene_render.py` beside it turns a scene into pixels.

Units: the short side of the picture is 96 units, whatever its size in pixels. A long picture has more room, so
figures (and the margins that keep labels unambiguous) grow with the fourth root of the aspect ratio: see
`Scene.growth`.

Where things are: one rule for every aspect ratio. A figure's position is the fraction (x / width, y / height) of
the picture's own width and height. The nine places are thirds of those fractions. Of two figures, the one relation
is the axis on which the *fractions* differ more: `left of` when |dx| >= |dy|, `above` otherwise. Lists go from left
to right.

Only numpy is imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, product

import numpy as np

UNITS = 96.0  # length of the short side
MAX_FIGURES = 4
COUNT_PROBABILITIES = (0.05, 0.25, 0.35, 0.20, 0.15)  # of 0, 1, 2, 3, 4 figures

COLORS = ("red", "green", "blue", "yellow", "purple", "cyan")
SHAPES = ("circle", "square", "triangle", "star")
SHAPE_SCALE = {"circle": 0.95, "square": 1.15, "triangle": 1.25, "star": 1.22}  # outer radius, for a similar area
SMALL_RADIUS = (8.5, 10.5)
LARGE_RADIUS = (14.0, 17.0)

ALL_PAIRS: tuple[tuple[str, str], ...] = tuple(product(COLORS, SHAPES))
HELD_OUT_PAIRS = (("green", "star"), ("purple", "triangle"))  # never shown in training: the compositional test
SEEN_PAIRS = tuple(pair for pair in ALL_PAIRS if pair not in HELD_OUT_PAIRS)

# Margins, as fractions of the picture's width and height, before `growth`.
PLACE_MARGIN = 4 / 96  # distance from the borders of the nine places
RELATION_MARGIN = 9 / 96  # | |dx| - |dy| | of two figures
ORDER_MARGIN = 6 / 96  # |dx| of neighbours in a list
GAP = 1.5  # units between two figures

ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "center", "right")


@dataclass(frozen=True, slots=True)
class Figure:
    """One coloured shape; centre `x`, `y` and `radius` in units, `angle` in radians."""

    color: str
    shape: str
    large: bool
    x: float
    y: float
    radius: float
    angle: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.color} {self.shape}"

    @property
    def outer(self) -> float:
        """Radius of the circle that holds the figure, in units."""
        return self.radius * SHAPE_SCALE[self.shape]


@dataclass(frozen=True, slots=True)
class Scene:
    """Figures on a canvas of `width` x `height` units, the shorter of which is 96."""

    width: float
    height: float
    figures: tuple[Figure, ...]

    @property
    def growth(self) -> float:
        """How much larger figures and margins are than in a square picture (1 for a square, 1.41 for 4:1)."""
        return growth_of(self.width / self.height)

    def ordered(self) -> list[Figure]:
        """The figures from left to right."""
        return sorted(self.figures, key=lambda figure: figure.x)

    def fraction(self, figure: Figure) -> tuple[float, float]:
        """Position as a fraction of the picture's width and height."""
        return figure.x / self.width, figure.y / self.height


def growth_of(aspect: float) -> float:
    """Fourth root of the aspect ratio, long side over short side."""
    return float(max(aspect, 1 / aspect) ** 0.25)


def canvas(aspect: float) -> tuple[float, float]:
    """(width, height) in units of a picture with this width over height."""
    return (UNITS * aspect, UNITS) if aspect >= 1 else (UNITS, UNITS / aspect)


# ---------------------------------------------------------------- sampling


def sample_scene(
    rng: np.random.Generator,
    aspect: float = 1.0,
    count: int | None = None,
    pairs: Sequence[tuple[str, str]] = SEEN_PAIRS,
    required: Sequence[tuple[str, str]] = (),
    spacing: float = 1.0,
) -> Scene:
    """A random scene whose caption and answers are unambiguous.

    `count` figures (default: drawn from `COUNT_PROBABILITIES`) of different `pairs`; one of `required`, if given, is
    among them. `spacing` below 1 lets figures overlap by that factor of their distance (mild occlusion).
    """
    n = int(rng.choice(MAX_FIGURES + 1, p=COUNT_PROBABILITIES)) if count is None else count
    width, height = canvas(aspect)
    chosen = [pairs[i] for i in rng.permutation(len(pairs))[:n]]
    if required and n and not set(chosen) & set(required):
        chosen[int(rng.integers(n))] = required[int(rng.integers(len(required)))]
    large = rng.random(n) < (0.5 if n < MAX_FIGURES else 0.2)
    radius, centres, large = _place(rng, width, height, chosen, large, spacing)
    angles = rng.uniform(-0.26, 0.26, n)
    figures = [
        Figure(
            color, shape, bool(large[i]), float(centres[i, 0]), float(centres[i, 1]), float(radius[i]), float(angles[i])
        )
        for i, (color, shape) in enumerate(chosen)
    ]
    return Scene(width, height, tuple(figures))


def _place(
    rng: np.random.Generator,
    width: float,
    height: float,
    pairs: Sequence[tuple[str, str]],
    large: np.ndarray,
    spacing: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(radius [n], centres [n, 2], large [n]): rejection sampling, 48 layouts at a time.

    Where it is too crowded, all figures become small.
    """
    n = len(pairs)
    growth = growth_of(width / height)
    scale = np.array([SHAPE_SCALE[shape] for _, shape in pairs]) * 0.95
    for attempt in range(60):
        if attempt % 3 == 2:
            large = np.zeros(n, bool)
        low, high = np.where(large[:, None], LARGE_RADIUS, SMALL_RADIUS).T
        radius = rng.uniform(low, high) * growth
        outer = radius * scale
        room = np.array([width, height]) - 2 * outer[:, None]
        layouts = rng.random((48, n, 2)) * room + outer[:, None]
        good = np.flatnonzero(_clear(layouts, outer, width, height, growth, spacing))
        if len(good):
            return radius, layouts[good[0]], large
    raise AssertionError(f"no room for {n} figures on {width:.0f}x{height:.0f}")


def _clear(
    layouts: np.ndarray, outer: np.ndarray, width: float, height: float, growth: float, spacing: float
) -> np.ndarray:
    """bool [L]: which layouts [L, n, 2] keep the gap and the margins."""
    n = layouts.shape[1]
    size = np.array([width, height])
    if n == 0:
        return np.ones(len(layouts), bool)
    if n == 1:
        fraction = layouts[:, 0] / size
        border = np.minimum(np.abs(fraction - 1 / 3), np.abs(fraction - 2 / 3)).min(1)
        return np.asarray(border >= PLACE_MARGIN * growth)
    i, j = np.triu_indices(n, 1)
    delta = np.abs(layouts[:, i] - layouts[:, j])
    need = (outer[i] + outer[j] + GAP) * spacing
    ok: np.ndarray = (np.hypot(delta[..., 0], delta[..., 1]) >= need).all(1)
    dx, dy = (delta / size).transpose(2, 0, 1)
    if n == 2:
        ok &= np.abs(dx - dy)[:, 0] >= RELATION_MARGIN * growth
    else:
        ok &= (dx >= ORDER_MARGIN * growth).all(1)
    return ok


# ---------------------------------------------------------------- words


def place(scene: Scene, figure: Figure) -> str:
    """One of the nine places, such as "top left", "left" or "center"."""
    fx, fy = scene.fraction(figure)
    row, column = (min(2, max(0, int(f * 3))) for f in (fy, fx))
    if row == 1:
        return COLUMNS[column]
    return ROWS[row] if column == 1 else f"{ROWS[row]} {COLUMNS[column]}"


def place_is_clear(scene: Scene, figure: Figure) -> bool:
    """Whether the figure's centre is far enough from the borders of the nine places."""
    margin = PLACE_MARGIN * scene.growth
    return min(abs(f - third) for f in scene.fraction(figure) for third in (1 / 3, 2 / 3)) >= margin


def relation(scene: Scene, a: Figure, b: Figure) -> str:
    """Where `a` is relative to `b`: "left of", "right of", "above" or "below"."""
    (ax, ay), (bx, by) = scene.fraction(a), scene.fraction(b)
    dx, dy = bx - ax, by - ay
    if abs(dx) >= abs(dy):
        return "left of" if dx > 0 else "right of"
    return "above" if dy > 0 else "below"


def relation_is_clear(scene: Scene, a: Figure, b: Figure) -> bool:
    """Whether one axis clearly dominates."""
    (ax, ay), (bx, by) = scene.fraction(a), scene.fraction(b)
    return abs(abs(ax - bx) - abs(ay - by)) >= RELATION_MARGIN * scene.growth


def caption(scene: Scene) -> str:
    """The one true caption, such as "a large red circle at the top left" or "a red star above a blue square"."""
    figures = scene.ordered()
    if not figures:
        return "nothing"
    if len(figures) == 1:
        size = "large" if figures[0].large else "small"
        return f"a {size} {figures[0].name} at the {place(scene, figures[0])}"
    if len(figures) == 2:
        a, b = figures
        if relation(scene, a, b) in ("right of", "below"):
            a, b = b, a
        return f"a {a.name} {relation(scene, a, b)} a {b.name}"
    names = [f"a {figure.name}" for figure in figures]
    return f"{len(figures)} shapes: {', '.join(names[:-1])} and {names[-1]}"


def is_ambiguous(scene: Scene) -> bool:
    """Whether the caption of this scene could be argued about: figures touch, or a position is near its border."""
    figures = scene.ordered()
    for i, a in enumerate(figures):
        for b in figures[i + 1 :]:
            if np.hypot(a.x - b.x, a.y - b.y) < (a.outer + b.outer) * 0.95:
                return True
    if len(figures) == 1:
        return not place_is_clear(scene, figures[0])
    if len(figures) == 2:
        return not relation_is_clear(scene, *figures)
    gaps = [(b.x - a.x) / scene.width for a, b in pairwise(figures)]
    return bool(gaps) and min(gaps) < ORDER_MARGIN * scene.growth
