"""JSON from strangers and for them: bounded before anything is built, and nothing in it that readers differ on."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence

from runtime.errors import InputError

MAX_DEPTH = 64
# Brackets, commas, colons and quotes. A request is texts, a schema and a few pictures; a million of empty lists is not.
MAX_MARKS = 200_000
_MARK = re.compile(r'["\[\]{},:]')
_CUT = (",", ":")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def parse_json(body: bytes) -> object:
    """The value of a JSON text. Raises InputError: no UTF-8, no JSON, deeper than `MAX_DEPTH`, more than `MAX_MARKS`,
    a key twice in an object, a number that is none in JSON, half a character."""
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"the body is no UTF-8 at byte {error.start}") from None
    _check_shape(text)
    try:
        value: object = json.loads(
            text, object_pairs_hook=_object, parse_constant=_constant, parse_float=_float, parse_int=_int
        )
    except json.JSONDecodeError as error:
        raise InputError(f"the body is no JSON: {error.msg} at character {error.pos}") from None
    if _SURROGATE.search(text) is not None:
        _check_characters(value)
    return value


def _check_shape(text: str) -> None:
    """Look at brackets and at where strings end, in one pass that stops at a limit."""
    depth = marks = position = 0
    while (found := _MARK.search(text, position)) is not None:
        mark, position = found.group(), found.end()
        marks += 1
        if mark == '"':
            position, escaped = _end_of_string(text, position, MAX_MARKS - marks)
            marks += escaped
        elif mark in "[{":
            depth += 1
        elif mark in "]}":
            depth -= 1
        if depth > MAX_DEPTH:
            raise InputError(f"the JSON is nested deeper than {MAX_DEPTH}")
        if marks > MAX_MARKS:
            raise InputError(f"the JSON has more than {MAX_MARKS} brackets, commas, colons and quotes")


def _end_of_string(text: str, start: int, most: int) -> tuple[int, int]:
    """Where the string that begins at ``start`` is over, and how many quotes in it are escaped, ``most`` + 1 at most.
    A string without an end goes on to the end of the text: the parser tells."""
    escaped, position = 0, start
    while escaped <= most:
        end = text.find('"', position)
        if end < 0:
            return len(text), escaped
        piece = text[position:end]
        if (len(piece) - len(piece.rstrip("\\"))) % 2 == 0:
            return end + 1, escaped
        escaped, position = escaped + 1, end + 1
    return position, escaped


def _object(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise InputError("the body is no JSON: an object names a key twice")
    return found


def _constant(name: str) -> object:
    raise InputError(f"the body is no JSON: {name} is no number")


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise InputError("the body is no JSON: a number is too large")
    return value


def _int(text: str) -> int:
    if len(text) > 40:
        raise InputError(f"the body is no JSON: a number has {len(text)} digits")
    return int(text)


def _check_characters(value: object) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise InputError("the body holds half of a character (a lone surrogate)") from None


def dump_json(value: object) -> str:
    """JSON on one line. A number that JSON has not becomes null: a model's answer must not break a page's parser."""
    try:
        return json.dumps(value, ensure_ascii=False, separators=_CUT, allow_nan=False, default=str)
    except ValueError:
        return json.dumps(_finite(value), ensure_ascii=False, separators=_CUT, default=str)


def _finite(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
