"""JSON of strangers: everything that is JSON is read as Python reads it, everything that is not is refused."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.captiond.http.json_text import MAX_DEPTH, MAX_MARKS, dump_json, parse_json
from runtime.errors import InputError

_LEAVES = st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats(allow_nan=False, allow_infinity=False)
_VALUES = st.recursive(
    _LEAVES | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=20,
)


@given(_VALUES, st.booleans())
def test_what_python_writes_is_read_back(value: object, ascii_only: bool) -> None:
    try:
        text = json.dumps(value, ensure_ascii=ascii_only).encode()
    except UnicodeEncodeError:
        return  # half of a character as a key: there is no such UTF-8
    if b"\\ud" not in text:
        assert parse_json(text) == value


@given(st.text(alphabet='[]{}",:\\ab10 eu.-\n', max_size=60))
def test_what_python_does_not_read_is_refused_and_nothing_else_is_raised(text: str) -> None:
    try:
        expected = json.loads(text)
    except ValueError:
        with pytest.raises(InputError):
            parse_json(text.encode())
        return
    try:
        found = parse_json(text.encode())
    except InputError as error:
        assert any(word in error.message for word in ("twice", "too large", "surrogate", "digits"))
    else:
        assert found == expected


@given(st.binary(max_size=200))
def test_any_bytes_give_a_value_or_an_input_error(data: bytes) -> None:
    try:
        parse_json(data)
    except InputError as error:
        assert error.message


def test_depth_and_count_are_limited_outside_of_strings_alone() -> None:
    deepest = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert parse_json(deepest.encode())
    with pytest.raises(InputError, match="deeper than 64"):
        parse_json(f"[{deepest}]".encode())
    brackets = "[" * 1000 + '\\"' + "{" * 1000
    assert parse_json(json.dumps({"a": brackets}).encode()) == {"a": brackets}
    with pytest.raises(InputError, match="more than"):
        parse_json(("[" + "[]," * MAX_MARKS + "1]").encode())


@pytest.mark.parametrize(
    "text",
    ['{"a":1,"a":2}', '{"a":{"b":1,"b":1}}', "NaN", "[Infinity]", "-Infinity", "1e999", '["\\ud800"]', '{"\\udfff":1}',
     "1" * 41, "[1,]", "{'a':1}", "\ufeff{}", "", " ", "[1] 2", '"a\nb"'],
)  # fmt: skip
def test_what_readers_differ_on_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        parse_json(text.encode())


def test_a_pair_of_surrogates_is_a_character() -> None:
    assert parse_json(b'"\\ud83d\\ude00"') == "\U0001f600"


@pytest.mark.parametrize(
    "text",
    [
        b"[" * 16_000_000,
        b'{"a":' * 3_000_000,
        b'"' + b'\\"' * 8_000_000,
        b'"' + b"\\" * 16_000_000,
        b"[" + b"[]," * 5_000_000 + b"1]",
        b"{" + b",".join(b'"%d":1' % n for n in range(1_000_000)) + b"}",
        b'{"a":"' + b"x" * 16_000_000 + b'"}',
        b"[" + b"1" * 16_000_000 + b"]",
    ],
    ids=["deep", "deep objects", "quotes", "backslashes", "wide", "many keys", "a picture", "digits"],
)
def test_sixteen_megabytes_of_malice_come_to_an_end(text: bytes) -> None:
    """Quadratic work would take hours, recursion would end the interpreter."""
    try:
        value = parse_json(text)
    except InputError:
        return
    assert isinstance(value, dict)
    assert len(value["a"]) == 16_000_000


def test_numbers_that_json_has_not_are_written_as_null() -> None:
    assert json.loads(dump_json({"a": [math.nan, math.inf, 1.5, "ü"], "b": (1, -math.inf)})) == {
        "a": [None, None, 1.5, "ü"],
        "b": [1, None],
    }
