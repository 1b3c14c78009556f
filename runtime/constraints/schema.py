"""Which JSON schemas answers can be held to, and those schemas in one plain form.

Every keyword of draft 2020-12 is either enforced to the letter or refused by its name: llguidance ignores what it does
not know, and a schema that is half obeyed is worse than none. The plain form has a type in every node, no annotations,
numbers within the range that JSON readers keep exactly, and no reference but to ``#/$defs/…``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from runtime.constraints.pattern import check_pattern
from runtime.errors import InputError

Node = dict[str, Any]

MAX_SCHEMA_CHARS = 65_536
MAX_DEPTH = 24
MAX_NODES = 1024
MAX_ENUM = 1024
MAX_TEXT_CHARS = 1024
MAX_LENGTH = 4096
MAX_MIN_LENGTH = 1024
MAX_ITEMS = 1024
MAX_MULTIPLE = 1000
MAX_WHOLE = 2**53 - 1  # beyond it, readers that keep numbers as doubles round
MAX_NUMBER = 10**15
ANY = "any"

TYPES = ("object", "array", "string", "integer", "number", "boolean", "null")
FORMATS = ("date-time", "date", "time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid")
_MONTHS = "(?:(?:0[1-9]|1[0-2])-(?:0[1-9]|1[0-9]|2[0-8])|(?:0[13-9]|1[0-2])-(?:29|30)|(?:0[13578]|1[02])-31)"
_DATE = f"[12][0-9]{{3}}-{_MONTHS}"
_TIME = "(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
# Stricter than llguidance, which takes the 31st of February, the year 0 and leap seconds. Leap days are left out.
_FORMAT_PATTERNS = {"date": f"^{_DATE}$", "time": f"^{_TIME}$", "date-time": f"^{_DATE}T{_TIME}$"}
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
    if _depth(schema) > 2 * MAX_DEPTH:
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
            for name, node in _object(schema.get(group, {}), f"#/{group}").items():
                defs[f"{group}/{name}"] = self.node(node, f"#/{group}/{name}", 1)
        plain = self.node(schema, "#", 0)
        defs["#"] = plain
        names = {name: f"d{index}" for index, name in enumerate(defs)}
        for place, target in self._references:
            if target not in names and target != ANY:
                raise InputError(f"schema at {place}: '$ref' leads to {target!r}, which is not among its definitions")
        used = {names.get(target, ANY): _linked(node, names) for target, node in defs.items()}
        return {**_linked(plain, names), "$defs": {**used, ANY: _any_value()}}

    def node(self, node: object, place: str, depth: int) -> Node:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise InputError(f"the schema has more than {MAX_NODES} parts")
        if depth > MAX_DEPTH:
            raise InputError(f"schema at {place}: nested more than {MAX_DEPTH} levels deep")
        if node is True:
            return {"$ref": ANY}
        if not isinstance(node, dict):
            raise InputError(f"schema at {place}: {_shown(node)} is no schema that an answer can be held to")
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
            raise InputError(f"schema at {place}: {keyword!r} is {_shown(value)}: a list of schemas is needed")
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
            raise InputError(f"schema at {place}: '$ref' is {_shown(value)}: only '#' and '#/$defs/…' are supported")
        self._references.append((place, target))
        return target

    def _values_of(self, node: Node, place: str) -> Node:
        keyword = "enum" if "enum" in node else "const"
        others = [key for key in node if key not in (keyword, "type")]
        if others:
            raise InputError(f"schema at {place}: the keyword {keyword!r} beside {others[0]!r} is not supported")
        values = node[keyword] if keyword == "enum" else [node[keyword]]
        if not isinstance(values, list):
            raise InputError(f"schema at {place}: 'enum' is {_shown(values)}: a list is needed")
        self._values += len(values)
        if self._values > MAX_ENUM:
            raise InputError(f"the schema has more than {MAX_ENUM} enum values")
        types = _types(node["type"], place) if "type" in node else TYPES
        kept = [value for value in values if any(_is(value, kind) for kind in types)]
        for value in values:
            _check_value(value, place, keyword)
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
        types = _types(node["type"], place)
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
            return _string(node, place)
        return _number(kind, node, place) if kind in ("integer", "number") else {"type": kind}

    def _object(self, node: Node, place: str, depth: int) -> Node:
        properties = _object(node.get("properties", {}), f"{place}/properties")
        for key in properties:
            _check_text(key, f"{place}/properties", "a key")
        required = node.get("required", [])
        if not isinstance(required, list) or not all(isinstance(key, str) for key in required):
            raise InputError(f"schema at {place}: 'required' is {_shown(required)}: a list of keys is needed")
        if len(required) > MAX_NODES:
            raise InputError(f"schema at {place}: more than {MAX_NODES} required keys")
        inner = {key: self.node(value, f"{place}/properties/{key}", depth + 1) for key, value in properties.items()}
        rest = node.get("additionalProperties", not properties and not required)
        if "additionalProperties" in node and rest is not False:
            rest = self.node(rest, f"{place}/additionalProperties", depth + 1)
        elif rest is True:
            rest = {"$ref": ANY}
        for key in required:
            _check_text(key, place, "a required key")
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
        low = _count(node, "minItems", 0, MAX_ITEMS, place)
        high = _count(node, "maxItems", None, None, place)
        first = node.get("prefixItems", [])
        if not isinstance(first, list):
            raise InputError(f"schema at {place}: 'prefixItems' is {_shown(first)}: a list of schemas is needed")
        plain: Node = {"type": "array", "minItems": low or 0}
        if first:
            plain["prefixItems"] = [self.node(n, f"{place}/prefixItems/{i}", depth + 1) for i, n in enumerate(first)]
        rest = node.get("items", True)
        plain["items"] = False if rest is False else self.node(rest, f"{place}/items", depth + 1)
        if rest is False and (low or 0) > len(first):
            raise InputError(f"schema at {place}: 'minItems' is {low}, it has room for {len(first)}")
        if high is not None:
            _check_order("minItems", low or 0, "maxItems", high, place)
            plain["maxItems"] = min(high, MAX_ITEMS)
        return plain


def _string(node: Node, place: str) -> Node:
    low = _count(node, "minLength", 0, MAX_MIN_LENGTH, place)
    high = _count(node, "maxLength", None, None, place)
    plain: Node = {"type": "string"}
    if low:
        plain["minLength"] = low
    if high is not None:
        _check_order("minLength", low or 0, "maxLength", high, place)
        plain["maxLength"] = min(high, MAX_LENGTH)
    if "pattern" in node:
        check_pattern(node["pattern"], place)
        plain["pattern"] = node["pattern"]
    if "format" in node:
        if node["format"] not in FORMATS:
            name = _shown(node["format"])
            raise InputError(f"schema at {place}: the format {name} is not supported: {', '.join(FORMATS)} are")
        if "pattern" in plain:
            raise InputError(f"schema at {place}: the keyword 'format' beside 'pattern' is not supported")
        if node["format"] in _FORMAT_PATTERNS:
            plain["pattern"] = _FORMAT_PATTERNS[node["format"]]
        else:
            plain["format"] = node["format"]
    return plain


def _number(kind: str, node: Node, place: str) -> Node:
    limit = MAX_WHOLE if kind == "integer" else MAX_NUMBER
    plain: Node = {"type": kind}
    for keyword in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"):
        if keyword not in node:
            continue
        value = node[keyword]
        if not _is(value, "number") or not abs(value) <= limit:
            raise InputError(f"schema at {place}: {keyword!r} is {_shown(value)}: a number within ±{limit} is needed")
        if kind == "number" and value != round(value, 12):
            raise InputError(f"schema at {place}: {keyword!r} is {value!r}: at most 12 decimals are supported")
        plain[keyword] = value
    if "minimum" not in plain and "exclusiveMinimum" not in plain:
        plain["minimum"] = -limit
    if "maximum" not in plain and "exclusiveMaximum" not in plain:
        plain["maximum"] = limit
    if "multipleOf" in node:
        step = node["multipleOf"]
        if not _is(step, "integer") or not 1 <= step <= MAX_MULTIPLE:
            raise InputError(
                f"schema at {place}: 'multipleOf' is {_shown(step)}: a whole number from 1 to {MAX_MULTIPLE} is needed"
            )
        plain["multipleOf"] = int(step)
    return plain


def _any_value() -> Node:
    deeper = {"$ref": f"#/$defs/{ANY}"}
    return {
        "anyOf": [
            {"type": "null"},
            {"type": "boolean"},
            {"type": "number", "minimum": -MAX_NUMBER, "maximum": MAX_NUMBER},
            {"type": "string"},
            {"type": "array", "items": deeper},
            {"type": "object", "additionalProperties": deeper},
        ]
    }


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
            raise InputError(f"schema at {place}: the keyword {_shown(keyword)} is not supported")


def _check_value(value: object, place: str, keyword: str) -> None:
    if isinstance(value, str):
        _check_text(value, place, f"{keyword!r}")
    elif isinstance(value, (dict, list)):
        raise InputError(f"schema at {place}: {keyword!r} holds an object or a list, which is not supported")
    elif isinstance(value, (int, float)) and not abs(value) <= MAX_WHOLE:
        raise InputError(f"schema at {place}: {keyword!r} holds {_shown(value)}, the limit is ±{MAX_WHOLE}")


def _check_text(text: str, place: str, what: str) -> None:
    if len(text) > MAX_TEXT_CHARS:
        raise InputError(f"schema at {place}: {what} of {len(text)} characters, the most is {MAX_TEXT_CHARS}")
    if any(ord(char) < 32 or 127 <= ord(char) < 160 or 0xD800 <= ord(char) < 0xE000 for char in text):
        raise InputError(f"schema at {place}: {what} {text[:40]!r} has a control character, which is not supported")


def _types(value: object, place: str) -> tuple[str, ...]:
    kinds = value if isinstance(value, list) else [value]
    if not kinds or any(kind not in TYPES for kind in kinds):
        raise InputError(f"schema at {place}: 'type' is {_shown(value)}: one or more of {', '.join(TYPES)} are needed")
    return tuple(dict.fromkeys(kinds))


def _is(value: object, kind: str) -> bool:
    if kind in ("integer", "number"):
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        return number and (kind == "number" or value == int(value))  # type: ignore[call-overload]
    classes: dict[str, type | tuple[type, ...]] = {
        "object": dict,
        "array": list,
        "string": str,
        "boolean": bool,
        "null": type(None),
    }
    return isinstance(value, classes[kind])


def _count(node: Node, keyword: str, missing: int | None, most: int | None, place: str) -> int | None:
    if keyword not in node:
        return missing
    value = node[keyword]
    if not _is(value, "integer") or value < 0:
        raise InputError(f"schema at {place}: {keyword!r} is {_shown(value)}: a whole number from 0 is needed")
    if most is not None and value > most:
        raise InputError(f"schema at {place}: {keyword!r} is {value}, the most is {most}")
    return int(value)


def _check_order(low: str, least: int, high: str, most: int, place: str) -> None:
    if least > most:
        raise InputError(f"schema at {place}: {low!r} is {least}, {high!r} is {most}")


def _object(value: object, place: str) -> Node:
    if not isinstance(value, dict):
        raise InputError(f"schema at {place}: {_shown(value)} is given, an object is needed")
    return value


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:59] + "…"


def _depth(value: object) -> int:
    depth, level = 0, [value]
    while level and depth <= 4 * MAX_DEPTH:
        depth += 1
        level = [inner for item in level for inner in _inner(item)]
    return depth


def _inner(item: object) -> Iterator[object]:
    if isinstance(item, Mapping):
        yield from item.values()
    elif isinstance(item, (list, tuple)):
        yield from item
