"""Scene change: an area between 0 and 1 that noise and exposure do not move and things that come do."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.captiond.pictures.scene import difference, scene_of

Picture = npt.NDArray[np.uint8]


def room(seed: int = 1) -> Picture:
    """A still picture with light and dark parts, none of them black or white."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(50, 190, (12, 16, 3))
    return np.kron(coarse, np.ones((40, 40, 1))).astype(np.uint8)


def noisy(picture: Picture, sigma: float, seed: int) -> Picture:
    noise = np.random.default_rng(seed).normal(0, sigma, picture.shape)
    return np.clip(picture + noise, 0, 255).astype(np.uint8)


def share(before: Picture, now: Picture) -> float:
    return difference(scene_of(before), scene_of(now))


@settings(max_examples=20)
@given(st.integers(0, 1000), st.floats(0, 20))
def test_noise_is_no_change(seed: int, sigma: float) -> None:
    assert share(noisy(room(), sigma, seed), noisy(room(), sigma, seed + 1)) == 0


@settings(max_examples=20)
@given(st.floats(0.7, 1.2), st.floats(-16, 16))
def test_exposure_is_no_change(gain: float, offset: float) -> None:
    exposed = np.clip(gain * room().astype(float) + offset, 0, 255).astype(np.uint8)
    assert share(room(), exposed) == 0


@pytest.mark.parametrize("part", [0.02, 0.1, 0.25, 0.5])
@pytest.mark.parametrize("gain", [1.0, 0.8])
def test_something_that_comes_counts_by_its_area(part: float, gain: float) -> None:
    side = part**0.5
    height, width = round(480 * side), round(640 * side)
    now = (gain * room()).astype(np.uint8)
    now[100 : 100 + height, 30 : 30 + width] = (255 * (np.indices((height, width)).sum(0) // 20 % 2))[..., None]
    assert part * 0.6 <= share(room(), noisy(now, 5, 3)) <= part * 1.5 + 0.02


def test_another_scene_and_a_light_that_goes_out_are_great_changes() -> None:
    assert share(room(1), room(2)) > 0.5
    for left in (0.05, 0.3):
        assert share(room(), (room() * left).astype(np.uint8)) > 0.5


@settings(max_examples=20)
@given(st.integers(0, 50), st.integers(0, 50))
def test_it_is_between_none_and_all_and_nothing_changes_from_itself(first: int, second: int) -> None:
    before, now = room(first), room(second)
    assert 0 <= share(before, now) <= 1
    assert share(before, before) == 0


def test_pictures_without_any_contrast_can_be_compared() -> None:
    flat = np.full((480, 640, 3), 100, np.uint8)
    assert share(flat, flat) == 0
    assert share(flat, room()) > 0.3
    assert share(np.zeros_like(flat), np.full_like(flat, 255)) == 1
