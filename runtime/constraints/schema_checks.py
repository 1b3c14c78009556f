"""Checks of what stands behind the keywords of a schema; each refusal names the place."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from runtime.errors import InputError

Node = dict[str, Any]

TYPES = ("object", "array", "string", "integer", "number", "boolean", "null")
MAX_TEXT_CHARS = 1024
MAX_WHOLE = 2**53 - 1  # beyond it, readers that keep numbers as doubles round


def check_value(value: object, place: str, keyword: str) -> None:
    """One value of an enum."""
    if isinstance(value, str):
        check_text(value, place, f"{keyword!r}")
    elif isinstance(value, (dict, list)):
        raise InputError(f"schema at {place}: {keyword!r} holds an object or a list, which is not supported")
    elif isinstance(value, (int, float)) and not abs(value) <= MAX_WHOLE:
        raise InputError(f"schema at {place}: {keyword!r} holds {shown(value)}, the limit is ±{MAX_WHOLE}")


def check_text(text: str, place: str, what: str) -> None:
    """A key or a value that answers must spell."""
    if len(text) > MAX_TEXT_CHARS:
        raise InputError(f"schema at {place}: {what} of {len(text)} characters, the most is {MAX_TEXT_CHARS}")
    if any(ord(char) < 32 or 127 <= ord(char) < 160 or 0xD800 <= ord(char) < 0xE000 for char in text):
        raise InputError(f"schema at {place}: {what} {text[:40]!r} has a control character, which is not supported")


def types_of(value: object, place: str) -> tuple[str, ...]:
    """The types that ``type`` names."""
    kinds = value if isinstance(value, list) else [value]
    if not kinds or any(kind not in TYPES for kind in kinds):
        raise InputError(f"schema at {place}: 'type' is {shown(value)}: one or more of {', '.join(TYPES)} are needed")
    return tuple(dict.fromkeys(kinds))


def is_of(value: object, kind: str) -> bool:
    """Whether a JSON value is of a type; 1.0 is an integer, true is none."""
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


def count_of(node: Node, keyword: str, missing: int | None, most: int | None, place: str) -> int | None:
    """A whole number from 0 to ``most``; ``missing`` where it is not given."""
    if keyword not in node:
        return missing
    value = node[keyword]
    if not is_of(value, "integer") or value < 0:
        raise InputError(f"schema at {place}: {keyword!r} is {shown(value)}: a whole number from 0 is needed")
    if most is not None and value > most:
        raise InputError(f"schema at {place}: {keyword!r} is {value}, the most is {most}")
    return int(value)


def check_order(low: str, least: int, high: str, most: int, place: str) -> None:
    """A lower bound above the upper one."""
    if least > most:
        raise InputError(f"schema at {place}: {low!r} is {least}, {high!r} is {most}")


def members_of(value: object, place: str) -> Node:
    """An object of the schema."""
    if not isinstance(value, dict):
        raise InputError(f"schema at {place}: {shown(value)} is given, an object is needed")
    return value


def shown(value: object) -> str:
    """A value in a message: short."""
    text = repr(value)
    return text if len(text) <= 60 else text[:59] + "…"


def depth_of(value: object, limit: int) -> int:
    """How deep JSON is nested; counts no further than ``limit``."""
    depth, level = 0, [value]
    while level and depth < limit:
        depth += 1
        level = [inner for item in level for inner in _inner(item)]
    return depth


def _inner(item: object) -> Iterator[object]:
    if isinstance(item, Mapping):
        yield from item.values()
    elif isinstance(item, (list, tuple)):
        yield from item
