"""Every keyword is enforced to the letter or refused by its name; what is hostile is refused soon."""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime.captiond.asks import ConstraintSpec
from runtime.constraints import check_schema, from_spec, json_schema
from runtime.constraints.grammar import byte_matcher, schema_grammar
from runtime.constraints.pattern import check_pattern
from runtime.constraints.schema import ANNOTATIONS, KEYWORDS, normal_schema
from runtime.errors import InputError
from tests.runtime.constraints.answers import needed, written

# The keywords of draft 2020-12, and those of older drafts and dialects that people still write.
DRAFT = frozenset(
    (
        "$id", "$schema", "$ref", "$anchor", "$dynamicRef", "$dynamicAnchor", "$vocabulary", "$comment", "$defs",
        "prefixItems", "items", "contains", "additionalProperties", "properties", "patternProperties",
        "dependentSchemas", "propertyNames", "if", "then", "else", "allOf", "anyOf", "oneOf", "not",
        "unevaluatedItems", "unevaluatedProperties", "type", "const", "enum", "multipleOf", "maximum",
        "exclusiveMaximum", "minimum", "exclusiveMinimum", "maxLength", "minLength", "pattern", "maxItems", "minItems",
        "uniqueItems", "maxContains", "minContains", "maxProperties", "minProperties", "required", "dependentRequired",
        "title", "description", "default", "deprecated", "readOnly", "writeOnly", "examples", "format",
        "contentEncoding", "contentMediaType", "contentSchema", "definitions", "dependencies", "$recursiveRef",
        "additionalItems", "nullable", "discriminator", "x-guidance",
    )
)  # fmt: skip
ROOT_ONLY = frozenset(("$id", "$defs", "definitions"))
REFUSED = sorted(DRAFT - KEYWORDS - ANNOTATIONS - {"$id"})
SAMPLES: dict[str, object] = {"contains": {"type": "null"}, "if": {}, "then": {}, "else": {}, "not": {}}


def accepts(schema: Any, text: str) -> bool:
    matcher = byte_matcher(schema_grammar(normal_schema(schema)))
    data = list(text.encode())
    return matcher.try_consume_tokens(data) == len(data) and bool(matcher.is_accepting())


@pytest.mark.parametrize("keyword", REFUSED)
@pytest.mark.parametrize("where", ["#", "#/properties/a", "#/items"])
def test_a_keyword_that_is_not_enforced_is_refused_by_its_name_and_place(keyword: str, where: str) -> None:
    part: dict[str, Any] = {keyword: SAMPLES.get(keyword, 1)}
    schema = {
        "#": part,
        "#/properties/a": {"type": "object", "properties": {"a": part}},
        "#/items": {"type": "array", "items": part},
    }[where]
    with pytest.raises(InputError, match=f"schema at {where}: the keyword '{keyword.replace('$', '.')}' is not supp"):
        json_schema(schema)


def test_the_lists_of_keywords_cover_the_draft() -> None:
    assert {"not", "if", "contains", "propertyNames", "patternProperties", "minProperties"} <= set(REFUSED)
    assert {"unevaluatedProperties", "dependentRequired", "contentEncoding", "$dynamicRef"} <= set(REFUSED)
    assert DRAFT >= KEYWORDS


WHOLE: dict[str, Any] = {"type": "integer"}
# Schema, texts that are valid, texts that are not.
ENFORCED: list[tuple[Any, list[str], list[str]]] = [
    ({"type": "boolean"}, ["true", "false"], ["1", "null", '"true"']),
    ({"type": "null"}, ["null"], ["0", "false"]),
    (WHOLE, ["0", "-5", "12"], ["1.5", "1e3", "01", "+1", '"1"', "9007199254740993", "-9007199254740993", ""]),
    ({"type": "number"}, ["0", "-5.25", "12"], ["01", "1.", ".5", "1e400", "NaN", "Infinity"]),
    ({"type": ["integer", "null"]}, ["5", "null"], ["1.5", "true"]),
    ({**WHOLE, "minimum": 3, "maximum": 12}, ["3", "12"], ["2", "13", "-3"]),
    ({**WHOLE, "exclusiveMinimum": 3, "exclusiveMaximum": 12}, ["4", "11"], ["3", "12"]),
    ({"type": "number", "minimum": 0.5, "maximum": 1}, ["0.5", "0.75", "1"], ["0.4", "1.01", "0"]),
    ({"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}, ["0.1"], ["0", "1", "-0.5"]),
    ({**WHOLE, "multipleOf": 3}, ["6", "-3", "0"], ["4", "7"]),
    ({"type": "string"}, ['"a b"', '"\\""', '"ü"', '""'], ["a", '"\\n"', '"\n"', '"\\u0000"', '"']),
    ({"type": "string", "minLength": 2, "maxLength": 3}, ['"ab"', '"üüü"'], ['"a"', '"abcd"']),
    ({"type": "string", "pattern": "^[a-c]+$"}, ['"abc"'], ['"abd"', '""', '"ab c"']),
    ({"type": "string", "pattern": "b"}, ['"abc"'], ['"ac"']),
    ({"type": "string", "format": "date"}, ['"2024-12-31"'], ['"2024-02-30"', '"2024-13-01"', '"x"', '"0000-01-01"']),
    ({"type": "string", "format": "time"}, ['"23:59:59Z"', '"00:00:00+01:00"'], ['"24:00:00Z"', '"23:59:60Z"']),
    ({"type": "string", "format": "date-time"}, ['"2024-12-31T00:00:00Z"'], ['"2024-12-31"', '"2024-12-32T00:00:00Z"']),
    ({"type": "string", "format": "ipv4"}, ['"1.2.3.4"'], ['"256.1.1.1"', '"1.2.3"']),
    ({"type": "string", "format": "ipv6"}, ['"::1"'], ['"1.2.3.4"', '":::"']),
    ({"type": "string", "format": "uuid"}, ['"123e4567-e89b-12d3-a456-426614174000"'], ['"123e4567"']),
    ({"type": "string", "format": "email"}, ['"a@b.cd"'], ['"a.b"']),
    ({"type": "string", "format": "hostname"}, ['"a.example"'], ['"-a"', '"a b"']),
    ({"type": "string", "format": "duration"}, ['"P1D"'], ['"1 day"']),
    ({"enum": ["a", 1, None, True, 1.5]}, ['"a"', "1", "null", "true", "1.5"], ['"b"', "2", "false"]),
    ({"const": 'q"\\ü'}, ['"q\\"\\\\ü"'], ['"q"']),
    ({"type": "string", "enum": ["a", 1]}, ['"a"'], ["1"]),
    ({"anyOf": [WHOLE, {"type": "null"}]}, ["5", "null"], ["1.5"]),
    ({"oneOf": [WHOLE, {"type": "string"}]}, ["5", '"a"'], ["null"]),
    ({"allOf": [WHOLE]}, ["5"], ["null"]),
    ({"$ref": "#/$defs/a", "$defs": {"a": WHOLE}}, ["5"], ["null"]),
    ({"$ref": "#/definitions/a", "definitions": {"a": WHOLE}}, ["5"], ["null"]),
    ({"type": "array", "items": WHOLE}, ["[]", "[1]", "[1,2]"], ['["a"]', "[1,]", "[1 ,2]"]),
    ({"type": "array", "items": WHOLE, "minItems": 1, "maxItems": 2}, ["[1]", "[1,2]"], ["[]", "[1,2,3]"]),
    ({"type": "array", "items": WHOLE, "uniqueItems": False}, ["[1,1]"], []),
    ({"prefixItems": [WHOLE, {"type": "null"}], "items": False}, ["[1,null]", "[1]"], ["[null]", "[1,null,1]"]),
    ({"properties": {"a": WHOLE}}, ["{}", '{"a":1}'], ['{"a":"x"}', '{"b":1}', '{"a":1,"a":2}', "{ }"]),
    ({"properties": {"a": WHOLE, "b": WHOLE}, "required": ["b"]}, ['{"b":1}', '{"a":1,"b":2}'], ["{}", '{"a":1}']),
    ({"type": "object", "additionalProperties": WHOLE}, ["{}", '{"x":1}'], ['{"x":"y"}']),
    (
        {"type": "object", "properties": {"a": WHOLE}, "additionalProperties": {"type": "null"}},
        ['{"a":1,"b":null}'],
        ['{"a":null}', '{"\\u0061":null}', '{"b":1}'],
    ),
    ({"type": "object", "required": ["z"]}, ['{"z":[1,{"a":null}]}'], ["{}", '{"z":1,"y":2}']),
    ({"properties": {"a": WHOLE}, "required": ["a"]}, ['{"a":1}'], ["5", "{}"]),
    ({}, ["1", '{"a":[null]}', '"x"'], ["1e999", "[1,]", ""]),
    (True, ["1"], []),
    ({"title": "t", "description": "d", "default": 1, "examples": [1], "$id": "i", **WHOLE}, ["5"], ["null"]),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "valid", "invalid"), ENFORCED, ids=lambda value: json.dumps(value)[:60])
def test_accepted_keywords_are_enforced(schema: Any, valid: list[str], invalid: list[str]) -> None:
    schema = {"anyOf": [schema]} if schema is True else schema
    for text in valid:
        assert accepts(schema, text), text
        jsonschema.validate(json.loads(text), schema)
    for text in invalid:
        assert not accepts(schema, text), text


BAD: list[tuple[Any, str]] = [
    (5, "an object is needed"),
    ([], "an object is needed"),
    ({"type": "king"}, "'type' is 'king'"),
    ({"type": []}, "'type' is"),
    ({"type": "array", "uniqueItems": True}, "'uniqueItems' is not supported"),
    ({"type": "object", "properties": 5}, "5 is given"),
    ({"type": "object", "properties": {"a": 5}}, "#/properties/a"),
    ({"type": "object", "properties": {"a": False}}, "#/properties/a"),
    ({"type": "object", "required": "a"}, "'required'"),
    ({"type": "object", "properties": {"a": WHOLE}, "required": ["b"], "additionalProperties": False}, "'b'"),
    ({"type": "object", "properties": {"a\n": WHOLE}}, "control character"),
    ({"enum": ["a\n"]}, "control character"),
    ({"enum": []}, "leaves no value"),
    ({"enum": [{"a": 1}]}, "an object or a list"),
    ({"enum": [10**30]}, "limit"),
    ({"type": "string", "enum": [1]}, "leaves no value"),
    ({"enum": ["a"], "minLength": 3}, "'enum' beside 'minLength'"),
    ({"anyOf": []}, "list of schemas"),
    ({"anyOf": [WHOLE], "type": "integer"}, "'anyOf' beside 'type'"),
    ({"allOf": [WHOLE, WHOLE]}, "several schemas"),
    ({"oneOf": [WHOLE, {"type": "number"}]}, "oneOf"),
    ({"$ref": "http://example.com/s"}, "only '#'"),
    ({"$ref": "#/properties/a"}, "only '#'"),
    ({"$ref": "#/$defs/missing"}, "'.defs/missing'"),
    ({"$ref": "#"}, "no finite answer"),
    ({"$ref": "#/$defs/a", "minimum": 5, "$defs": {"a": WHOLE}}, "beside 'minimum'"),
    ({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "no finite answer"),
    ({**WHOLE, "minimum": 5, "maximum": 3}, "minimum"),
    ({**WHOLE, "minimum": "5"}, "'minimum'"),
    ({**WHOLE, "maximum": 1e300}, "'maximum'"),
    ({**WHOLE, "multipleOf": 0.1}, "'multipleOf'"),
    ({**WHOLE, "multipleOf": 10**9}, "'multipleOf'"),
    ({**WHOLE, "multipleOf": 7, "minimum": 1, "maximum": 6}, "answer"),
    ({"type": "string", "minLength": 5, "maxLength": 3}, "'minLength' is 5"),
    ({"type": "string", "minLength": -1}, "'minLength'"),
    ({"type": "string", "minLength": 10**8}, "the most is"),
    ({"type": "string", "format": "uri"}, "format 'uri'"),
    ({"type": "string", "format": "date", "pattern": "a"}, "beside 'pattern'"),
    ({"type": "string", "pattern": "a", "minLength": 3, "maxLength": 0}, "'minLength'"),
    ({"type": "string", "pattern": "^a$", "minLength": 3}, "Unsatisfiable"),
    ({"type": "array", "minItems": 10**9}, "the most is"),
    ({"type": "array", "minItems": 3, "maxItems": 2}, "'minItems' is 3"),
    ({"type": "array", "minItems": 3, "prefixItems": [WHOLE], "items": False}, "room for 1"),
    ({"type": "array", "minItems": True}, "'minItems'"),
    ({"description": "x" * 70_000}, "65536"),
    ({"enum": list(range(2000))}, "1024 enum values"),
    ({"type": "object", "properties": {f"p{n}": True for n in range(1100)}}, "1024 parts"),
    ({"type": "array", "minItems": 1000, "items": {"type": "array", "minItems": 1000}}, "answer"),
]


@pytest.mark.parametrize(("schema", "words"), BAD, ids=[str(n) for n in range(len(BAD))])
def test_schemas_that_cannot_be_are_refused_with_the_reason(schema: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        from_spec(ConstraintSpec("json_schema", schema=schema))


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = WHOLE
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


def test_depth_is_limited_without_recursion_trouble() -> None:
    check_schema(nested(20))
    for depth in (30, 5000):
        with pytest.raises(InputError, match="levels deep"):
            check_schema(nested(depth))


@pytest.mark.parametrize(
    "pattern",
    [
        "(?=a)b", "(?<!a)b", "(a)\\1", "\\bword", "\\p{L}", "(?i)a", "(?P<n>a)", "[[:alpha:]]", "[a&&b]", "[a--b]",
        "a++", "a{2000}", "a{1,99999999999}", "a{,5}", "a{", "(", "[", "\\", "a\n", "x" * 300, "\\D", "\\W", "\\u0041",
        "[]a]", "*",
    ],
)  # fmt: skip
def test_patterns_that_libraries_read_differently_are_refused(pattern: str) -> None:
    with pytest.raises(InputError, match="pattern"):
        check_pattern(pattern, "#")


@pytest.mark.parametrize(
    "pattern",
    ["(((((a{1,30}){1,30}){1,30}){1,30}){1,30})", "^(a|aa|aaa)*(a+)+(a{1,500}){1,500}$", "^(?:.*a){50}$", ".*" * 60],
)
def test_a_hostile_pattern_ends_in_a_refusal_or_in_answers(pattern: str) -> None:
    """Whatever the library makes of it, it does so at once: this test has no time limit, and needs none."""
    schema = {"type": "string", "pattern": pattern}
    try:
        constraint = json_schema(schema)
    except InputError:
        return
    text, _, _ = written(constraint, needed(constraint) + 5, random.Random(0))
    assert text[0] == text[-1] == '"'


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(st.sampled_from(sorted(KEYWORDS)), st.text(max_size=3)), inner, max_size=3),
    ),
    max_leaves=10,
)


@settings(max_examples=500, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(schema=JSON)
def test_any_json_as_a_schema_is_taken_or_refused_and_nothing_else(schema: Any) -> None:
    try:
        constraint = from_spec(ConstraintSpec("json_schema", schema=schema))
    except InputError as error:
        assert error.message
        return
    text, _, _ = written(constraint, needed(constraint) + 3, random.Random(1))
    value = json.loads(text)
    # An empty list of schemas and the like: taken for what they mean, though the meta-schema forbids them.
    if jsonschema.Draft202012Validator(jsonschema.Draft202012Validator.META_SCHEMA).is_valid(schema):
        jsonschema.validate(value, schema)
