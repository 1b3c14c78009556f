"""A parsed TOML table as an instance of a settings class: every key known, every value of its type and in its limits.

Errors are ConfigError; they name the setting, its value and what is allowed.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from runtime.captiond.config.setting import Rules, key_of, rules_of
from runtime.errors import ConfigError

_T = TypeVar("_T")
_SHOWN_CHARS = 80


def table_of(cls: type[_T], values: Mapping[str, object], where: str) -> _T:
    """An instance of a settings class from a TOML table; ``where`` is the table's name for messages."""
    hints = typing.get_type_hints(cls)
    known = {key_of(item): item for item in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            raise _unknown(_join(where, key), key, list(known))
    given: dict[str, Any] = {}
    for key, item in known.items():
        place = _join(where, key)
        if key in values:
            given[item.name] = _field(values[key], hints[item.name], rules_of(item), place)
        elif item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{place} is missing", hint=f"{key}: {rules_of(item).doc}")
    return cls(**given)


def _field(value: object, hint: Any, rules: Rules, place: str) -> object:
    if rules.item is None:
        return _value(value, hint, rules, place)
    if not rules.toml_name:
        if not isinstance(value, Mapping):
            raise _wrong(place, value, "a table", f"[{place}]")
        return table_of(rules.item, value, place)
    if not isinstance(value, list) or not all(isinstance(entry, Mapping) for entry in value):
        raise _wrong(place, value, "an array of tables", f"[[{place}]]")
    _check_count(value, rules, place)
    return tuple(table_of(rules.item, entry, f"{place}[{number}]") for number, entry in enumerate(value))


def _value(value: object, hint: Any, rules: Rules, place: str) -> object:
    """Check one value against a field's type: bool, int, float, str, a tuple of str, a mapping, or object for any."""
    if isinstance(hint, types.UnionType):  # X | None: TOML has no null, absent is None
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    origin = typing.get_origin(hint)
    if hint is object:
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise _wrong(place, value, "a list", f'{place} = ["…"]')
        _check_count(value, rules, place)
        return tuple(_text(entry, rules, f"{place}[{number}]") for number, entry in enumerate(value))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise _wrong(place, value, "a table")
        return value
    if hint is bool:
        if not isinstance(value, bool):
            raise _wrong(place, value, "true or false")
        return value
    return _text(value, rules, place) if hint is str else _number(value, hint, rules, place)


def _text(value: object, rules: Rules, place: str) -> str:
    if not isinstance(value, str):
        raise _wrong(place, value, "a text", f'{place} = "…"')
    if rules.choices and value not in rules.choices:
        raise ConfigError(f"{place} is {_shown(value)}; allowed are {', '.join(rules.choices)}")
    if rules.pattern and not re.fullmatch(rules.pattern, value):
        raise ConfigError(f"{place} is {_shown(value)}; it must match {rules.pattern}", hint=rules.doc)
    if len(value) > rules.max_chars:
        raise ConfigError(f"{place} has {len(value)} characters, the most is {rules.max_chars}")
    if "\0" in value:
        raise ConfigError(f"{place} has a NUL character")
    return value


def _number(value: object, hint: type, rules: Rules, place: str) -> int | float:
    whole = hint is int
    kinds = (int,) if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not math.isfinite(value):
        raise _wrong(place, value, "a whole number" if whole else "a number")
    low = -math.inf if rules.low is None else rules.low
    high = math.inf if rules.high is None else rules.high
    if not low <= value <= high or (rules.low_open and value == low):
        raise ConfigError(f"{place} is {value!r}; allowed is {limits(rules)}", hint=rules.doc)
    return value if whole else float(value)


def limits(rules: Rules) -> str:
    """The range of a number in words."""
    low = None if rules.low is None else f"{'above' if rules.low_open else 'from'} {_plain(rules.low)}"
    high = None if rules.high is None else f"to {_plain(rules.high)}"
    return " ".join(part for part in (low, high) if part) or "any number"


def _plain(value: float) -> str:
    return str(int(value)) if value == int(value) else str(value)


def _check_count(value: Sequence[object], rules: Rules, place: str) -> None:
    if len(value) > rules.max_items:
        raise ConfigError(f"{place} has {len(value)} entries, the most is {rules.max_items}")


def _unknown(place: str, key: str, known: list[str]) -> ConfigError:
    near = difflib.get_close_matches(key, known, 1)
    hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}"
    return ConfigError(f"{place}: there is no such setting", hint=hint)


def _wrong(place: str, value: object, needed: str, example: str | None = None) -> ConfigError:
    return ConfigError(f"{place} is {_shown(value)}; {needed} is needed", hint=example)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARS else text[: _SHOWN_CHARS - 1] + "…"


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key
