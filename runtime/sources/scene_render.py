"""Pixels of a scene: camera look, rendering, figure masks, and motion over time (numpy only).

Every figure is drawn by one polar formula: with n corners and a = pi / n, a regular shape or star of outer radius R
and inner radius q R has the boundary r(phi) = R q sin(a) / (q sin(a - phi) + sin(phi)), phi being the angle folded
into [0, a]. Coverage is clamp((r - rho) / softness + 0.5), computed only in the figure's bounding box.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from runtime.sources.scenes import MAX_FIGURES, SEEN_PAIRS, Figure, Scene, caption, is_ambiguous, sample_scene

RGB = {
    "red": (0.86, 0.12, 0.12),
    "green": (0.12, 0.68, 0.18),
    "blue": (0.15, 0.25, 0.88),
    "yellow": (0.92, 0.85, 0.12),
    "purple": (0.62, 0.18, 0.72),
    "cyan": (0.15, 0.80, 0.85),
}
# corners n, inner over outer radius q, angle of the first corner
OUTLINE = {
    "circle": (24, float(np.cos(np.pi / 24)), 0.0),
    "square": (4, float(np.cos(np.pi / 4)), np.pi / 4),
    "triangle": (3, float(np.cos(np.pi / 3)), -np.pi / 2),
    "star": (5, 0.45, -np.pi / 2),
}
KNOTS = 6  # background texture knots per side


@dataclass(frozen=True, slots=True)
class Look:
    """What the camera and the light do to a scene, independent of what is in it. Colours are RGB in 0..1."""

    background: np.ndarray  # [3, 6, 6] light at the knots: level, tint, gradient and texture
    gain: np.ndarray  # [3] exposure times white balance
    noise: float  # standard deviation of the sensor noise
    softness: float  # width of an edge, pixels
    tint: np.ndarray  # [4, 3] added to each figure's colour
    shade: np.ndarray  # [4, 2] change of each figure's light along x and y


def sample_look(rng: np.random.Generator) -> Look:
    """A random look of a plausible cheap camera."""
    knots = np.linspace(-1, 1, KNOTS)
    slope = rng.normal(0, 0.10, (2, 1)) + rng.normal(0, 0.02, (2, 3))
    level = rng.uniform(0.05, 0.55) + rng.normal(0, 0.03, 3)
    ramp = slope[0][:, None, None] * knots[None, None, :] + slope[1][:, None, None] * knots[None, :, None]
    background = level[:, None, None] + ramp + rng.normal(0, 0.05, (3, KNOTS, KNOTS))
    return Look(
        background=background.astype(np.float32),
        gain=(rng.uniform(0.75, 1.15) * rng.uniform(0.94, 1.06, 3)).astype(np.float32),
        noise=float(rng.uniform(0, 0.06)),
        softness=float(rng.uniform(0.5, 1.6)),
        tint=rng.normal(0, 0.035, (MAX_FIGURES, 3)).astype(np.float32),
        shade=rng.normal(0, 0.08, (MAX_FIGURES, 2)).astype(np.float32),
    )


@lru_cache(maxsize=512)
def _bilinear(size: int) -> np.ndarray:
    """[size, 6] weights that interpolate the knots at pixel centres."""
    at = np.linspace(0, KNOTS - 1, size)
    weights: np.ndarray = np.maximum(0, 1 - np.abs(at[:, None] - np.arange(KNOTS))).astype(np.float32)
    return weights


def _box(figure: Figure, scene: Scene, columns: int, rows: int) -> tuple[slice, slice]:
    """(rows, columns) of the grid that the figure can touch."""
    sx, sy = columns / scene.width, rows / scene.height
    reach = figure.outer
    x0, x1 = int((figure.x - reach) * sx) - 2, int((figure.x + reach) * sx) + 3
    y0, y1 = int((figure.y - reach) * sy) - 2, int((figure.y + reach) * sy) + 3
    return slice(max(0, y0), max(0, min(rows, y1))), slice(max(0, x0), max(0, min(columns, x1)))


def _coverage(
    figure: Figure, scene: Scene, columns: int, rows: int, softness: float
) -> tuple[np.ndarray, slice, slice]:
    """(alpha f32 [h, w] in 0..1, row slice, column slice) of one figure on a grid of rows x columns."""
    ys, xs = _box(figure, scene, columns, rows)
    sx, sy = columns / scene.width, rows / scene.height
    n, q, first = OUTLINE[figure.shape]
    dx = (np.arange(xs.start, xs.stop, dtype=np.float32) + np.float32(0.5)) / np.float32(sx) - np.float32(figure.x)
    dy = (np.arange(ys.start, ys.stop, dtype=np.float32) + np.float32(0.5)) / np.float32(sy) - np.float32(figure.y)
    rho = np.sqrt(dx * dx + (dy * dy)[:, None])
    half = np.float32(np.pi / n)
    phi = np.arctan2(dy[:, None], dx) - np.float32(figure.angle + first)
    phi = np.abs(np.remainder(phi + half, 2 * half) - half)
    q32 = np.float32(q)
    edge = np.float32(figure.outer * q * np.sin(np.pi / n)) / (q32 * np.sin(half - phi) + np.sin(phi))
    alpha = (edge - rho) * np.float32(min(sx, sy) / softness) + np.float32(0.5)
    return np.clip(alpha, 0, 1, out=alpha), ys, xs


def masks(scene: Scene, columns: int, rows: int) -> np.ndarray:
    """f32 [n, rows, columns]: how much of each grid cell each figure covers (in the order of `scene.figures`)."""
    out = np.zeros((len(scene.figures), rows, columns), np.float32)
    for i, figure in enumerate(scene.figures):
        alpha, ys, xs = _coverage(figure, scene, columns, rows, 1.0)
        out[i, ys, xs] = alpha
    return out


def render(scene: Scene, look: Look, rng: np.random.Generator, width_px: int, height_px: int) -> np.ndarray:
    """The picture, u8 RGB [height_px, width_px, 3]; `rng` is the sensor noise. About 1 ms at 96 x 96 on one core."""
    image = np.matmul(_bilinear(height_px), look.background) @ _bilinear(width_px).T  # [3, H, W]
    for i, figure in enumerate(scene.figures):
        alpha, ys, xs = _coverage(figure, scene, width_px, height_px, look.softness)
        u = (np.arange(xs.start, xs.stop, dtype=np.float32) / width_px - 0.5) * (2 * look.shade[i % MAX_FIGURES, 0])
        v = (np.arange(ys.start, ys.stop, dtype=np.float32) / height_px - 0.5) * (2 * look.shade[i % MAX_FIGURES, 1])
        light = 1 + u + v[:, None]
        color = np.asarray(RGB[figure.color], np.float32) + look.tint[i % MAX_FIGURES]
        region = image[:, ys, xs]
        region += (color[:, None, None] * light - region) * alpha
    image *= look.gain[:, None, None]
    noise = rng.standard_normal(image.shape, dtype=np.float32)
    noise *= look.noise
    image += noise
    np.clip(image, 0, 1, out=image)
    image *= 255
    image += 0.5
    return np.ascontiguousarray(image.astype(np.uint8).transpose(1, 2, 0))


# ---------------------------------------------------------------- motion


@dataclass(frozen=True, slots=True)
class Picture:
    """One frame of a moving scene and what is true of it."""

    rgb: np.ndarray  # u8 [H, W, 3]
    scene: Scene
    caption: str
    ambiguous: bool


def moving_pictures(
    rng: np.random.Generator,
    width_px: int,
    height_px: int,
    counts: Sequence[int] = (1, 2, 3),
    cut_every: int = 60,
    speed: float = 0.8,
    pairs: Sequence[tuple[str, str]] = SEEN_PAIRS,
) -> Iterator[Picture]:
    """An endless film: figures drift and bounce, brightness wanders, and every `cut_every` frames a new scene begins.

    `counts` are the numbers of figures of the scenes, in turn; `speed` is in units per frame. The same generator
    state gives the same film.
    """
    cut = 0
    while True:
        scene = sample_scene(rng, width_px / height_px, counts[cut % len(counts)], pairs)
        look = sample_look(rng)
        heading = rng.uniform(0, 2 * np.pi, len(scene.figures))
        velocity = np.stack([np.cos(heading), np.sin(heading)], 1) * speed * rng.uniform(0.6, 1.4, (len(heading), 1))
        drift = 1.0
        for _ in range(cut_every):
            light = replace(look, gain=(look.gain * drift).astype(np.float32))
            rgb = render(scene, light, rng, width_px, height_px)
            yield Picture(rgb, scene, caption(scene), is_ambiguous(scene))
            scene, velocity = _moved(scene, velocity, rng)
            drift = float(np.clip(drift * np.exp(rng.normal(0, 0.01)), 0.8, 1.2))
        cut += 1


def _moved(scene: Scene, velocity: np.ndarray, rng: np.random.Generator) -> tuple[Scene, np.ndarray]:
    """The scene one frame later and the new velocities [n, 2]: figures bounce off the borders and off each other."""
    n = len(scene.figures)
    if n == 0:
        return scene, velocity
    at = np.array([[f.x, f.y] for f in scene.figures]) + velocity
    outer = np.array([f.outer for f in scene.figures]) * 0.98
    velocity = velocity.copy()
    for i in range(n):
        for j in range(i + 1, n):
            apart = at[i] - at[j]
            distance = float(np.hypot(*apart))
            closing = float((velocity[i] - velocity[j]) @ apart)
            if distance < outer[i] + outer[j] + 2 and closing < 0:
                normal = apart / distance
                push = ((velocity[i] - velocity[j]) @ normal) * normal
                velocity[i], velocity[j] = velocity[i] - push, velocity[j] + push
    size = np.array([scene.width, scene.height])
    low, high = outer[:, None], size - outer[:, None]
    velocity = np.where(at < low, np.abs(velocity), np.where(at > high, -np.abs(velocity), velocity))
    at = np.clip(at, low, high)
    turn = rng.normal(0, 0.01, n)
    figures = tuple(
        replace(f, x=float(at[i, 0]), y=float(at[i, 1]), angle=float(np.clip(f.angle + turn[i], -0.26, 0.26)))
        for i, f in enumerate(scene.figures)
    )
    return replace(scene, figures=figures), velocity
