"""Whatever is sampled, the answer is whole and valid when the budget ends; too small a budget is refused before."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime.constraints import json_object, json_schema
from runtime.errors import InputError
from tests.runtime.constraints.answers import DEMO, DEMO_STOP, DEMO_VOCAB, needed, sentencepiece_json, written

CONTROL = re.compile("[\x00-\x1f\x7f]")
SPIECE: dict[str, Any] = {"text": sentencepiece_json(), "vocab": 400, "stop": (2,)}

KEYS = st.sampled_from(["a", "b", "name", "count", "ä", 'q"', "a b", "", "$ref", "enum"])
TEXTS = st.text(st.characters(min_codepoint=32, max_codepoint=0x2FF, exclude_categories=["Cc", "Cs"]), max_size=8)
PATTERNS = st.sampled_from(
    ["^[a-z]+$", "^a(b|c)*d$", "[0-9]{3}", "^\\d{2}:\\d{2}$", "x", "^(yes|no|maybe)$", "^.{2,5}$"]
)


def _range(kind: str) -> st.SearchStrategy[dict[str, Any]]:
    def made(values: tuple[int, int], low: str, high: str, keep: tuple[bool, bool]) -> dict[str, Any]:
        least, most = sorted(values)
        wide = least, most + 2
        return {"type": kind} | {name: value for name, value, kept in zip((low, high), wide, keep, strict=True) if kept}

    number = st.integers(-1000, 1000)
    return st.builds(
        made,
        st.tuples(number, number),
        st.sampled_from(["minimum", "exclusiveMinimum"]),
        st.sampled_from(["maximum", "exclusiveMaximum"]),
        st.tuples(st.booleans(), st.booleans()),
    )


def _text_schema(low: int, more: int, keep: bool) -> dict[str, Any]:
    return {"type": "string", "minLength": low} | ({"maxLength": low + more} if keep else {})


LEAVES = st.one_of(
    st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"type": "string"}, {"type": ["integer", "null"]}, {}]),
    st.just({"type": "integer", "multipleOf": 7}),
    _range("integer"),
    _range("number"),
    st.builds(_text_schema, st.integers(0, 6), st.integers(0, 6), st.booleans()),
    PATTERNS.map(lambda pattern: {"type": "string", "pattern": pattern}),
    st.sampled_from(["date", "uuid", "ipv4", "ipv6", "time", "date-time", "email", "hostname"]).map(
        lambda name: {"type": "string", "format": name}
    ),
    st.lists(st.one_of(TEXTS, st.integers(-99, 99), st.booleans(), st.none()), min_size=1, max_size=5).map(
        lambda values: {"enum": values}
    ),
)


def _object(members: dict[str, Any], required: list[bool], rest: Any) -> dict[str, Any]:
    names = [name for name, wanted in zip(members, required, strict=False) if wanted]
    extra = {} if rest is None else {"additionalProperties": rest}
    return {"type": "object", "properties": members, "required": names} | extra


def _compound(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        st.builds(
            _object,
            st.dictionaries(KEYS, inner, max_size=4),
            st.lists(st.booleans(), min_size=4, max_size=4),
            st.one_of(st.none(), st.just(False), inner),
        ),
        st.builds(
            lambda items, low, more: {"type": "array", "items": items, "minItems": low, "maxItems": low + more},
            inner,
            st.integers(0, 3),
            st.integers(0, 3),
        ),
        st.builds(
            lambda first, rest: {"type": "array", "prefixItems": first, "items": rest},
            st.lists(inner, min_size=1, max_size=3),
            st.one_of(st.just(False), inner),
        ),
        st.builds(lambda parts: {"anyOf": parts}, st.lists(inner, min_size=1, max_size=3)),
    )


SCHEMAS = st.recursive(LEAVES, _compound, max_leaves=8)
TREE = {
    "$ref": "#/$defs/node",
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "left": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
                "value": {"type": "integer", "minimum": 0, "maximum": 99},
                "children": {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 2},
            },
            "required": ["left", "value"],
            "additionalProperties": False,
        }
    },
}


def check(text: str, schema: Any) -> None:
    """The independent validator accepts ``text``, and nothing in it is loose."""
    value = json.loads(text, parse_constant=pytest.fail)
    jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker()).validate(value)
    assert not CONTROL.search(text), "a control character"
    assert "\\n" not in text.replace("\\\\", ""), "an escaped control character"


@settings(max_examples=120, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(schema=SCHEMAS, seed=st.integers(0, 2**32), spare=st.integers(0, 40), forced=st.sampled_from([0.0, 1.0]))
def test_any_answer_to_any_schema_is_valid_when_its_budget_ends(
    schema: Any, seed: int, spare: int, forced: float
) -> None:
    constraint = json_schema(schema)
    rng = random.Random(seed)
    for kind in ({}, SPIECE):
        least = needed(constraint, **kind)
        text, tokens, _ = written(constraint, least + spare, rng, follow_forced=forced, end=rng.random(), **kind)
        assert len(tokens) <= least + spare
        check(text, schema)


@pytest.mark.parametrize("spare", [0, 1, 2, 5, 13, 50, 300])
def test_a_recursive_schema_is_closed_inside_the_budget(spare: int) -> None:
    constraint = json_schema(TREE)
    for seed in range(8):
        text, _, _ = written(constraint, needed(constraint) + spare, random.Random(seed), end=0.0)
        check(text, TREE)


@pytest.mark.parametrize("budget", [2, 3, 4, 5, 9, 30, 100])
def test_any_json_object_is_closed_inside_the_budget(budget: int) -> None:
    for seed in range(10):
        text, _, _ = written(json_object(), budget, random.Random(seed), end=0.1)
        check(text, {"type": "object"})


def test_budget_one_token_too_small_is_refused_and_the_named_one_is_enough() -> None:
    constraint = json_schema(TREE)
    least = needed(constraint)
    with pytest.raises(InputError, match=f"needs at least {least} tokens, {least - 1} are left"):
        constraint.matcher(DEMO, DEMO_VOCAB, DEMO_STOP, least - 1)
    text, tokens, _ = written(constraint, least, random.Random(0))
    assert len(tokens) == least
    check(text, TREE)


def test_nothing_is_refused_while_the_budget_is_ample() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}, "b": {"enum": ["one", "two"]}}}
    constraint = json_schema(schema | {"required": ["a", "b"]})
    for seed in range(10):
        _, _, refusals = written(constraint, 100_000, random.Random(seed), end=0.0, follow_forced=0.0)
        assert refusals == 0


def test_a_number_that_has_begun_can_always_end() -> None:
    for start in ("-", "-0", "1", "0.", "-0.0"):
        constraint = json_schema({"type": "array", "items": {"type": "number"}})
        matcher = constraint.matcher(DEMO, DEMO_VOCAB, DEMO_STOP, 30)
        for char in "[" + start:
            assert matcher.push(next(i for i in range(409) if _spelling(i) == char)), (start, char)


def test_padding_and_special_tokens_are_never_allowed() -> None:
    matcher = json_object().matcher(DEMO, DEMO_VOCAB, DEMO_STOP, 50)
    assert matcher.push(int(np.flatnonzero(matcher.allowed())[0]))
    for _ in range(40):
        allowed = matcher.allowed()
        assert not allowed[409:].any() or matcher.done or allowed[410]
        assert not allowed[[409, 411]].any()
        assert not allowed[412:].any()
        if not any(matcher.push(int(token)) for token in np.flatnonzero(allowed)[::-1] if token < 409):
            break


def test_end_token_is_allowed_exactly_where_the_answer_is_whole() -> None:
    matcher = json_schema({"type": "integer", "minimum": 10, "maximum": 999}).matcher(DEMO, DEMO_VOCAB, DEMO_STOP, 9)
    ends = []
    for char in "123":
        ends.append(bool(matcher.allowed()[DEMO_STOP[0]]))
        assert not matcher.done
        assert matcher.push(next(i for i in range(409) if _spelling(i) == char and matcher.allowed()[i]))
    assert ends == [False, False, True]
    assert matcher.done


def test_the_end_token_ends_an_answer_that_could_go_on() -> None:
    matcher = json_schema({"type": "integer"}).matcher(DEMO, DEMO_VOCAB, DEMO_STOP, 9)
    assert not matcher.push(DEMO_STOP[0]), "nothing is no number"
    assert matcher.push(next(i for i in range(409) if _spelling(i) == "7"))
    assert not matcher.done
    assert matcher.push(DEMO_STOP[0])
    assert matcher.done


def test_tokens_that_were_not_allowed_are_refused_and_change_nothing() -> None:
    matcher = json_schema({"type": "boolean"}).matcher(DEMO, DEMO_VOCAB, DEMO_STOP, 9)
    before = matcher.allowed().copy()
    for token in (-1, 411, 500, 10**6):
        assert not matcher.push(token)
    assert (matcher.allowed() == before).all()


def test_a_grammar_that_the_library_gives_up_on_midway_ends_by_its_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    matcher: Any = json_schema(TREE).matcher(DEMO, DEMO_VOCAB, DEMO_STOP, 80)
    matcher._matcher = None  # what push() and allowed() do when the library reports a limit
    tokens = []
    while not matcher.done:
        token = int(np.flatnonzero(matcher.allowed())[0])
        assert matcher.push(token)
        tokens.append(token)
    check(_decoded(tokens), TREE)


def _spelling(token: int) -> str:
    return _decoded([token])


def _decoded(tokens: list[int]) -> str:
    from tests.runtime.constraints.answers import tokenizer

    text: str = tokenizer(DEMO).decode(tokens)
    return text
