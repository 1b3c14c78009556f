"""Which JSON schemas answers can be held to, and those schemas in one plain form.

Every keyword of draft 2020-12 is either enforced to the letter or refused by its name: llguidance ignores what it does
not know, and a schema that is half obeyed is worse than none. The plain form has a type in every node, no annotations,
numbers within the range that JSON readers keep exactly, and no reference but to ``#/$defs/…``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from runtime.constraints.schema_checks import (
    TYPES,
    Node,
    check_order,
    check_text,
    check_value,
    count_of,
    depth_of,
    is_of,
    members_of,
    shown,
    types_of,
)
from runtime.constraints.schema_leaves import ANY, any_value, plain_number, plain_string
from runtime.errors import InputError

MAX_SCHEMA_CHARS = 65_536
MAX_DEPTH = 24
MAX_NODES = 1024
MAX_ENUM = 1024
MAX_ITEMS = 1024

ANNOTATIONS = frozenset(
    ("title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$comment", "$schema")
)
_OF_TYPE = {
    "object": ("properties", "required", "additionalProperties"),
    "array": ("items", "prefixItems", "minItems", "maxItems"),
    "string": ("minLength", "maxLength", "pattern", "format"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
}
_OF_TYPE["integer"] = _OF_TYPE["number"]
_ASSERTIONS = frozenset(keyword for group in _OF_TYPE.values() for keyword in group)
_ALONE = ("$ref", "anyOf", "oneOf", "allOf")
KEYWORDS = _ASSERTIONS | frozenset((*_ALONE, "type", "enum", "const", "$defs", "definitions", "uniqueItems"))


def check_schema(schema: object) -> None:
    """Raises InputError when answers cannot be held to ``schema``; it names the place and the keyword."""
    normal_schema(schema)


def normal_schema(schema: object) -> Node:
    """``schema`` in its plain form, definitions included. Raises InputError."""
    if not isinstance(schema, Mapping):
        raise InputError(f"the schema is a {type(schema).__name__}: an object is needed")
    if depth_of(schema, 2 * MAX_DEPTH + 1) > 2 * MAX_DEPTH:
        raise InputError(f"the schema is nested more than {MAX_DEPTH} levels deep")
    try:
        text = json.dumps(schema, allow_nan=False)
    except (TypeError, ValueError) as problem:
        raise InputError(f"the schema is not JSON: {problem}") from problem
    if len(text) > MAX_SCHEMA_CHARS:
        raise InputError(f"the schema has {len(text)} characters, the most is {MAX_SCHEMA_CHARS}")
    return _Reader().root(json.loads(text))


class _Reader:
    """Reads one schema; counts what it has seen of it."""

    def __init__(self) -> None:
        self._nodes = 0
        self._values = 0
        self._references: list[tuple[str, str]] = []

    def root(self, schema: Node) -> Node:
        schema = {key: value for key, value in schema.items() if key != "$id"}
        defs: Node = {}
        for group in ("$defs", "definitions"):
            for name, node in members_of(schema.get(group, {}), f"#/{group}").items():
                defs[f"{group}/{name}"] = self.node(node, f"#/{group}/{name}", 1)
        plain = self.node(schema, "#", 0)
        defs["#"] = plain
        names = {name: f"d{index}" for index, name in enumerate(defs)}
        for place, target in self._references:
            if target not in names and target != ANY:
                raise InputError(f"schema at {place}: '$ref' leads to {target!r}, which is not among its definitions")
        used = {names.get(target, ANY): _linked(node, names) for target, node in defs.items()}
        return {**_linked(plain, names), "$defs": {**used, ANY: any_value()}}

    def node(self, node: object, place: str, depth: int) -> Node:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise InputError(f"the schema has more than {MAX_NODES} parts")
        if depth > MAX_DEPTH:
            raise InputError(f"schema at {place}: nested more than {MAX_DEPTH} levels deep")
        if node is True:
            return {"$ref": ANY}
        if not isinstance(node, dict):
            raise InputError(f"schema at {place}: {shown(node)} is no schema that an answer can be held to")
        node = {key: value for key, value in node.items() if key not in ANNOTATIONS}
        _check_keywords(node, place)
        if place == "#":
            node = {key: value for key, value in node.items() if key not in ("$defs", "definitions")}
        for keyword in _ALONE:
            if keyword in node:
                return self._alone(keyword, node, place, depth)
        if "enum" in node or "const" in node:
            return self._values_of(node, place)
        return self._typed(node, place, depth)

    def _alone(self, keyword: str, node: Node, place: str, depth: int) -> Node:
        others = [key for key in node if key != keyword]
        if others:
            raise InputError(f"schema at {place}: the keyword {keyword!r} beside {others[0]!r} is not supported")
        value = node[keyword]
        if keyword == "$ref":
            return {"$ref": self._target(value, place)}
        if not isinstance(value, list) or not value:
            raise InputError(f"schema at {place}: {keyword!r} is {shown(value)}: a list of schemas is needed")
        parts = [self.node(part, f"{place}/{keyword}/{i}", depth + 1) for i, part in enumerate(value)]
        if keyword == "allOf":
            if len(parts) > 1:
                raise InputError(f"schema at {place}: the keyword 'allOf' with several schemas is not supported")
            return parts[0]
        return parts[0] if len(parts) == 1 else {keyword: parts}

    def _target(self, value: object, place: str) -> str:
        if value == "#":
            target = "#"
        elif isinstance(value, str) and value.startswith(("#/$defs/", "#/definitions/")):
            target = value[2:].replace("~1", "/").replace("~0", "~")
        else:
            raise InputError(f"schema at {place}: '$ref' is {shown(value)}: only '#' and '#/$defs/…' are supported")
        self._references.append((place, target))
        return target

    def _values_of(self, node: Node, place: str) -> Node:
        keyword = "enum" if "enum" in node else "const"
        others = [key for key in node if key not in (keyword, "type")]
        if others:
            raise InputError(f"schema at {place}: the keyword {keyword!r} beside {others[0]!r} is not supported")
        values = node[keyword] if keyword == "enum" else [node[keyword]]
        if not isinstance(values, list):
            raise InputError(f"schema at {place}: 'enum' is {shown(values)}: a list is needed")
        self._values += len(values)
        if self._values > MAX_ENUM:
            raise InputError(f"the schema has more than {MAX_ENUM} enum values")
        types = types_of(node["type"], place) if "type" in node else TYPES
        kept = [value for value in values if any(is_of(value, kind) for kind in types)]
        for value in values:
            check_value(value, place, keyword)
        if not kept:
            raise InputError(f"schema at {place}: {keyword!r} leaves no value of the type {node.get('type')!r}")
        return {"enum": kept}

    def _typed(self, node: Node, place: str, depth: int) -> Node:
        if "type" not in node:
            kinds = [kind for kind, keywords in _OF_TYPE.items() if any(key in node for key in keywords)]
            if not kinds and "uniqueItems" not in node:
                return {"$ref": ANY}
            # Narrower than the draft, where such a keyword says nothing about values of another type.
            node["type"] = "number" if "number" in kinds else (kinds or ["array"])[0]
        types = types_of(node["type"], place)
        if "number" in types:
            types = tuple(kind for kind in types if kind != "integer")
        plain = [self._of_type(kind, node, place, depth) for kind in types]
        return plain[0] if len(plain) == 1 else {"anyOf": plain}

    def _of_type(self, kind: str, node: Node, place: str, depth: int) -> Node:
        if kind == "object":
            return self._object(node, place, depth)
        if kind == "array":
            return self._array(node, place, depth)
        if kind == "string":
            return plain_string(node, place)
        return plain_number(kind, node, place) if kind in ("integer", "number") else {"type": kind}

    def _object(self, node: Node, place: str, depth: int) -> Node:
        properties = members_of(node.get("properties", {}), f"{place}/properties")
        for key in properties:
            check_text(key, f"{place}/properties", "a key")
        required = node.get("required", [])
        if not isinstance(required, list) or not all(isinstance(key, str) for key in required):
            raise InputError(f"schema at {place}: 'required' is {shown(required)}: a list of keys is needed")
        if len(required) > MAX_NODES:
            raise InputError(f"schema at {place}: more than {MAX_NODES} required keys")
        inner = {key: self.node(value, f"{place}/properties/{key}", depth + 1) for key, value in properties.items()}
        rest = node.get("additionalProperties", not properties and not required)
        if "additionalProperties" in node and rest is not False:
            rest = self.node(rest, f"{place}/additionalProperties", depth + 1)
        elif rest is True:
            rest = {"$ref": ANY}
        for key in required:
            check_text(key, place, "a required key")
            if key not in inner:
                if rest is False and "additionalProperties" in node:
                    raise InputError(f"schema at {place}: the required key {key!r} is not among its properties")
                inner[key] = rest or {"$ref": ANY}
        return {
            "type": "object",
            "properties": inner,
            "required": list(dict.fromkeys(required)),
            "additionalProperties": rest,
        }

    def _array(self, node: Node, place: str, depth: int) -> Node:
        if node.get("uniqueItems", False) is not False:
            raise InputError(f"schema at {place}: the keyword 'uniqueItems' is not supported")
        low = count_of(node, "minItems", 0, MAX_ITEMS, place)
        high = count_of(node, "maxItems", None, None, place)
        first = node.get("prefixItems", [])
        if not isinstance(first, list):
            raise InputError(f"schema at {place}: 'prefixItems' is {shown(first)}: a list of schemas is needed")
        plain: Node = {"type": "array", "minItems": low or 0}
        if first:
            plain["prefixItems"] = [self.node(n, f"{place}/prefixItems/{i}", depth + 1) for i, n in enumerate(first)]
        rest = node.get("items", True)
        plain["items"] = False if rest is False else self.node(rest, f"{place}/items", depth + 1)
        if rest is False and (low or 0) > len(first):
            raise InputError(f"schema at {place}: 'minItems' is {low}, it has room for {len(first)}")
        if high is not None:
            check_order("minItems", low or 0, "maxItems", high, place)
            plain["maxItems"] = min(high, MAX_ITEMS)
        return plain


def _linked(node: Any, names: Mapping[str, str]) -> Any:
    """``node`` with its references by their new names."""
    if isinstance(node, list):
        return [_linked(item, names) for item in node]
    if not isinstance(node, dict):
        return node
    if set(node) == {"$ref"} and isinstance(node["$ref"], str):
        return {"$ref": f"#/$defs/{names.get(node['$ref'], ANY)}"}
    if "enum" in node and "type" not in node and isinstance(node["enum"], list):
        return node
    plain = {key: _linked(value, names) for key, value in node.items() if key != "properties"}
    if "properties" in node:
        plain["properties"] = {key: _linked(value, names) for key, value in node["properties"].items()}
    return plain


def _check_keywords(node: Node, place: str) -> None:
    for keyword in node:
        if keyword not in KEYWORDS or (keyword in ("$defs", "definitions") and place != "#"):
            raise InputError(f"schema at {place}: the keyword {shown(keyword)} is not supported")
