"""Frames as JPEGs, and words on them: sizes, wrapping, letters of many scripts, legibility."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.captiond.pictures import drawing

WORDS = st.text("abcdefghijklmnopqrstuvwxyz ÄÖÜß日本語", max_size=200)


def gradient(width: int = 320, height: int = 240) -> drawing.Picture:
    rows = np.linspace(0, 255, width, dtype=np.uint8)
    return np.repeat(np.repeat(rows[None, :, None], height, 0), 3, 2)


@pytest.mark.parametrize("side, expected", [(160, (120, 160)), (320, (240, 320)), (4000, (240, 320)), (1, (1, 1))])
def test_a_frame_is_made_smaller_never_larger(side: int, expected: tuple[int, int]) -> None:
    assert drawing.scaled(gradient(), side).shape[:2] == expected


def test_a_jpeg_shows_the_colours_of_the_frame() -> None:
    rgb = np.zeros((64, 64, 3), np.uint8)
    rgb[:, :32, 0], rgb[:, 32:, 2] = 200, 200
    data = drawing.encoded(drawing.scaled(rgb, 64), 95)
    shown = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
    assert np.abs(shown[30, 10].astype(int) - (200, 0, 0)).max() < 12
    assert np.abs(shown[30, 50].astype(int) - (0, 0, 200)).max() < 12


@settings(max_examples=40)
@given(WORDS, st.integers(60, 600))
def test_wrapped_text_fits_and_keeps_its_letters(text: str, room: int) -> None:
    lines = drawing.wrapped(text, 16, room)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert all(drawing.text_width(line, 16) <= room or len(line) == 1 for line in lines)


def test_words_stay_whole_where_they_can() -> None:
    lines = drawing.wrapped("a red ball lies beside the dog on the grass", 16, 160)
    assert len(lines) > 1
    assert " ".join(lines) == "a red ball lies beside the dog on the grass"


@pytest.mark.parametrize("letters", ["ü", "Ł", "é", "Ω", "Ж", "日", "한"])
def test_letters_of_many_scripts_are_drawn(letters: str) -> None:
    if not hasattr(cv2, "FontFace"):
        pytest.skip("OpenCV 4 has no font of its own")
    assert not np.array_equal(drawn(letters), drawn("?"))
    assert not np.array_equal(drawn(letters), drawn(""))


def drawn(caption: str, head: str = "") -> drawing.Picture:
    picture = gradient()
    drawing.draw_overlay(picture, head, caption)
    return picture


def test_the_words_stand_out_over_any_picture_and_leave_the_middle_alone() -> None:
    before = gradient()
    shown = drawn("a red ball", "door  80 ms")
    assert np.array_equal(shown[60:180], before[60:180])
    for strip in (shown[:24], shown[-24:]):
        assert strip.max() > 240
        assert np.median(strip[:, 300]) < 120 < 230 < before[0, 300, 0]


def test_a_caption_that_is_too_long_is_cut_and_never_fills_the_picture() -> None:
    shown = drawn("word " * 400)
    assert np.array_equal(shown[:80], gradient()[:80])


@pytest.mark.parametrize("size", [(16, 16), (40, 400), (400, 40)])
def test_small_pictures_take_words_too(size: tuple[int, int]) -> None:
    picture = gradient(*size)
    drawing.draw_overlay(picture, "door  80 ms", "a red ball lies beside the dog")
    assert picture.shape[:2] == size[::-1]


def test_without_fonts_accents_are_taken_off_and_the_rest_is_questioned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "_font", lambda: None)
    assert np.array_equal(drawn("Größe éà 日"), drawn("Gro?e ea ?"))
    assert not np.array_equal(drawn("a red ball"), drawn(""))
    assert drawing.wrapped("a red ball lies beside the dog", 16, 120) != ["a red ball lies beside the dog"]
