"""Events as JSON: valid, ASCII and bounded, whatever is in them."""

from __future__ import annotations

import json
import math

from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.captiond.outputs.payload import MAX_DEPTH, as_written, bounded, json_text
from tests.runtime.captiond.sample_events import finished, rule

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@settings(max_examples=50)
@given(st.text(), st.dictionaries(st.text(), ANYTHING))
def test_every_caption_is_strict_json_on_one_line(text: str, fields: dict[str, object]) -> None:
    written = json_text(finished(1, text, fields=fields), as_written, id="a-1")
    assert written.isascii() and written.isprintable()
    read = json.loads(written, parse_constant=lambda name: 1 / 0)
    assert (read["type"], read["text"], read["id"]) == ("caption", text, "a-1")


def test_texts_for_people_lose_their_controls_and_are_cut() -> None:
    read = json.loads(json_text(finished(1, "a\x1b[1m\nb" + "x" * 9000)))
    assert read["text"].startswith("a[1m b")
    assert len(read["text"]) == 4000


def test_numbers_that_json_lacks_become_null() -> None:
    assert bounded({"a": math.inf, "b": [math.nan, 1.23456]}) == {"a": None, "b": [None, 1.235]}


def test_what_is_nested_without_end_is_cut() -> None:
    deep: object = "x"
    for _ in range(900):
        deep = [deep]
    written = json_text(rule().__class__("door", "dog", True, deep, 1, rule().frame))
    assert written.count("[") == MAX_DEPTH - 1
    assert len(json.loads(json_text(finished(1, fields={"a": list(range(10_000))})))["fields"]["a"]) == 256
