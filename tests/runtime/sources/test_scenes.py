"""The scene model: what is drawn is what is said."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest

from runtime.sources import scene_render, scenes
from runtime.sources.scenes import HELD_OUT_PAIRS, SEEN_PAIRS, Figure, Scene, canvas, caption, sample_scene

ASPECTS = (1.0, 4 / 3, 0.75, 16 / 9, 3.5, 6.0, 1 / 6)
ROOT = Path(__file__).resolve().parents[3]


def scene_of(*figures: Figure, aspect: float = 1.0) -> Scene:
    return Scene(*canvas(aspect), figures)


def figure(color: str, shape: str, x: float, y: float, large: bool = False, radius: float = 10.0) -> Figure:
    return Figure(color, shape, large, x, y, radius)


def test_the_same_seed_gives_the_same_picture_and_another_seed_another() -> None:
    def picture(seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        scene = sample_scene(rng, 4 / 3, 2)
        return scene_render.render(scene, scene_render.sample_look(rng), rng, 128, 96)

    assert np.array_equal(picture(5), picture(5))
    assert not np.array_equal(picture(5), picture(6))
    assert picture(5).shape == (96, 128, 3)
    assert picture(5).dtype == np.uint8


@pytest.mark.parametrize("aspect", ASPECTS)
def test_sampled_scenes_are_unambiguous_and_inside_the_canvas(aspect: float) -> None:
    rng = np.random.default_rng(1)
    for count in (0, 1, 2, 3, 4) * 8:
        scene = sample_scene(rng, aspect, count)
        assert len(scene.figures) == count
        assert not scenes.is_ambiguous(scene), caption(scene)
        assert len({f.name for f in scene.figures}) == count
        for f in scene.figures:
            assert 0 < f.x < scene.width
            assert 0 < f.y < scene.height
        covered = scene_render.masks(scene, round(scene.width), round(scene.height))
        assert covered.shape == (count, round(scene.height), round(scene.width))
        assert (covered.sum((1, 2)) > 80).all()


def test_counts_follow_the_distribution() -> None:
    rng = np.random.default_rng(2)
    counts = np.bincount([len(sample_scene(rng).figures) for _ in range(3000)], minlength=5) / 3000
    assert np.abs(counts - scenes.COUNT_PROBABILITIES).max() < 0.03


def test_held_out_pairs_never_appear_unless_asked_for() -> None:
    rng = np.random.default_rng(3)
    seen = {(f.color, f.shape) for _ in range(600) for f in sample_scene(rng).figures}
    assert seen == set(SEEN_PAIRS)
    for _ in range(50):
        scene = sample_scene(rng, 1.0, 3, scenes.ALL_PAIRS, required=HELD_OUT_PAIRS)
        assert {(f.color, f.shape) for f in scene.figures} & set(HELD_OUT_PAIRS)


def test_captions_of_nothing_one_two_and_three() -> None:
    circle, square = figure("red", "circle", 20, 20, large=True), figure("blue", "square", 70, 30)
    star = figure("cyan", "star", 45, 80)
    assert caption(scene_of()) == "nothing"
    assert caption(scene_of(circle)) == "a large red circle at the top left"
    assert caption(scene_of(replace(star, x=48))) == "a small cyan star at the bottom"
    assert caption(scene_of(square, circle)) == "a red circle left of a blue square"
    assert caption(scene_of(star, replace(square, x=40, y=20))) == "a blue square above a cyan star"
    assert caption(scene_of(star, square, circle)) == "3 shapes: a red circle, a cyan star and a blue square"


def test_places_are_thirds_of_the_picture_whatever_its_shape() -> None:
    wide = scene_of(figure("red", "circle", 250, 48), aspect=4.0)
    assert caption(wide) == "a small red circle at the center"
    assert scenes.place(wide, figure("red", "circle", 130, 20)) == "top"
    assert scenes.place(wide, figure("red", "circle", 60, 90)) == "bottom left"
    tall = scene_of(aspect=0.25)
    assert scenes.place(tall, figure("red", "circle", 48, 100)) == "top"


def test_relations_compare_fractions_of_width_and_height() -> None:
    a, b = figure("red", "circle", 100, 20), figure("blue", "star", 160, 60)
    assert scenes.relation(scene_of(a, b, aspect=4.0), a, b) == "above"  # 60 / 384 < 40 / 96
    assert scenes.relation(scene_of(a, b, aspect=4.0), b, a) == "below"
    assert scenes.relation(scene_of(a, b, aspect=2.0), a, b) == "above"
    near = scene_of(a, b, aspect=1.7)
    assert scenes.relation(near, a, b) == "above"
    assert not scenes.relation_is_clear(near, a, b)


def test_touching_figures_and_borders_are_ambiguous() -> None:
    a = figure("red", "circle", 20, 20)
    assert scenes.is_ambiguous(scene_of(a, figure("blue", "star", 30, 22)))
    assert scenes.is_ambiguous(scene_of(replace(a, x=33.0)))
    assert not scenes.is_ambiguous(scene_of(a))
    row = scene_of(a, figure("blue", "star", 50, 50), figure("cyan", "star", 52, 80))
    assert scenes.is_ambiguous(row)


def test_a_figure_has_its_colour_where_its_mask_is() -> None:
    rng = np.random.default_rng(4)
    look = replace(
        scene_render.sample_look(rng),
        background=np.full((3, 6, 6), 0.3, np.float32),
        gain=np.ones(3, np.float32),
        noise=0.0,
        tint=np.zeros((4, 3), np.float32),
        shade=np.zeros((4, 2), np.float32),
    )
    for shape in scenes.SHAPES:
        scene = scene_of(figure("green", shape, 40, 50, radius=15))
        image = scene_render.render(scene, look, rng, 96, 96)
        inside = scene_render.masks(scene, 96, 96)[0] >= 1
        expected = np.round(255 * np.array(scene_render.RGB["green"]))
        assert np.abs(image[inside].mean(0) - expected).max() < 6
        assert np.abs(image[0, 0] - 0.3 * 255).max() < 2


def test_mask_area_is_the_area_of_the_polygon() -> None:
    for shape, corners, inner in (("square", 4, 0.0), ("triangle", 3, 0.0), ("star", 5, 0.45)):
        f = figure("red", shape, 48, 48, radius=20)
        area = scene_render.masks(scene_of(f), 384, 384).sum() / 16
        if inner:
            expected = corners * f.outer * f.outer * inner * np.sin(np.pi / corners)
        else:
            expected = corners / 2 * f.outer**2 * np.sin(2 * np.pi / corners)
        assert abs(area / expected - 1) < 0.02, shape


def test_spacing_below_one_hides_at_most_a_fifth_of_a_figure() -> None:
    rng = np.random.default_rng(5)
    worst = 0.0
    for _ in range(150):
        scene = sample_scene(rng, 1.0, 3, spacing=0.82)
        cover = scene_render.masks(scene, 192, 192)
        for i, j in ((0, 1), (0, 2), (1, 2)):
            shared = np.minimum(cover[i], cover[j]).sum()
            worst = max(worst, shared / min(cover[i].sum(), cover[j].sum()))
    assert worst <= 0.2


def test_film_moves_smoothly_and_tells_its_truth() -> None:
    def film() -> list[scene_render.Picture]:
        pictures = scene_render.moving_pictures(np.random.default_rng(7), 128, 96, (2, 3), cut_every=20)
        return list(islice(pictures, 45))

    first, again = film(), film()
    assert all(np.array_equal(a.rgb, b.rgb) for a, b in zip(first, again, strict=True))
    assert [len(p.scene.figures) for p in first[::20]] == [2, 3, 2]
    assert all(p.caption == caption(p.scene) and p.ambiguous == scenes.is_ambiguous(p.scene) for p in first)
    for i, (a, b) in enumerate(pairwise(first)):
        if (i + 1) % 20:
            moved = [np.hypot(f.x - g.x, f.y - g.y) for f, g in zip(a.scene.figures, b.scene.figures, strict=True)]
            assert 0 < max(moved) < 4
        for f in a.scene.figures:
            assert 0 < f.x < a.scene.width
            assert 0 < f.y < a.scene.height


def test_scenes_need_numpy_only() -> None:
    code = (
        "import sys, runtime.sources.scene_render\n"
        "found = {'torch', 'cv2', 'PIL', 'transformers'} & set(sys.modules)\n"
        "sys.exit(f'imported {found}' if found else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
