"""One of several texts, and nothing else."""

from __future__ import annotations

import random
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime import Session
from runtime.captiond.asks import ConstraintSpec
from runtime.constraints import choice, from_spec
from runtime.errors import InputError
from runtime.sources.scene_render import moving_pictures
from tests.runtime.constraints.answers import needed, written

DEMO = Path(__file__).resolve().parents[3] / "runtime" / "demo" / "demo-llava"
TEXTS = st.text(st.characters(categories=["L", "N", "P", "S"], max_codepoint=0x2FFF), min_size=1, max_size=12)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(choices=st.lists(TEXTS, min_size=1, max_size=6), seed=st.integers(0, 999), spare=st.integers(0, 9))
def test_the_answer_is_one_of_the_choices_whatever_the_budget(choices: list[str], seed: int, spare: int) -> None:
    constraint = choice(choices)
    text, tokens, _ = written(constraint, needed(constraint) + spare, random.Random(seed))
    assert text.removeprefix(" ") in choices
    assert len(tokens) <= needed(constraint) + spare


def test_each_choice_can_come_when_there_is_room() -> None:
    constraint = from_spec(ConstraintSpec("choice", choices=("yes", "no", "yes, two (2)!", "^.*$")))
    seen = {written(constraint, 40, random.Random(seed))[0] for seed in range(200)}
    choices = {"yes", "no", "yes, two (2)!", "^.*$"}
    # The model chooses whether a space comes first; answers are shown without it.
    assert seen == choices | {f" {text}" for text in choices}


def test_choices_too_long_for_the_budget_do_not_come() -> None:
    constraint = choice(["no", "a rather long answer that needs its tokens"])
    least = needed(constraint)
    assert {written(constraint, least, random.Random(seed))[0].strip() for seed in range(30)} == {"no"}


def test_a_model_held_to_yes_or_no_says_what_it_says_freely() -> None:
    pytest.importorskip("onnxruntime")
    rng = np.random.default_rng(5)
    pictures = list(islice(moving_pictures(rng, 256, 192, (1, 2, 3), 4, 1.2), 12))
    asked = [(color, shape) for color in ("red", "blue", "green") for shape in ("star", "circle", "square")]
    with Session.open(DEMO) as session:
        for picture in pictures:
            for color, shape in asked:
                question = f"Is there a {color} {shape}?"
                free = session.generate(question, images=[picture.rgb]).text
                held = session.generate(question, images=[picture.rgb], constraint=choice(("yes", "no"))).text
                assert held == free == ("yes" if f"{color} {shape}" in picture.caption else "no"), question


@pytest.mark.parametrize(
    ("choices", "words"),
    [([], "1 to 1024"), ("yes", "1 to 1024"), (["yes", ""], "1 to 1024"), (["a\nb"], "shown"), ([5], "1 to 1024"),
     (["x" * 2000], "1 to 1024"), (["x" * 1000 + str(n) for n in range(100)], "together"), (["a"] * 2000, "1 to 1024")],
)  # fmt: skip
def test_choices_that_cannot_be_are_refused(choices: list[str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        choice(choices)
