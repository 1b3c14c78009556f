"""Reads the fields of a request one by one: each has its type and range, and a refusal names it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from runtime.captiond.http.errors import HttpError

_SHOWN = 60


def refused(param: str, problem: str, *, status: int = 400, code: str = "invalid_value") -> HttpError:
    """The answer to a field that cannot be: ``param`` is its path."""
    return HttpError(status, f"{param}: {problem}", param=param, code=code)


class Fields:
    """The members of one object of a request. ``null`` is the same as a member that is not there."""

    def __init__(self, value: object, path: str = "") -> None:
        if not isinstance(value, Mapping):
            problem = f"{path or 'the body'} is {shown(value)}: an object is needed"
            raise HttpError(400, problem, param=path or None, code="invalid_type")
        self.members: Mapping[str, object] = {key: item for key, item in value.items() if item is not None}
        self._prefix = f"{path}." if path else ""

    def path(self, name: str) -> str:
        """Where ``name`` stands in the request."""
        return self._prefix + name

    def only(self, known: frozenset[str]) -> None:
        """Refuse members that nobody knows."""
        for name in self.members:
            if name not in known:
                raise refused(self.path(name)[:200], "there is no such parameter", code="unknown_parameter")

    def text(self, name: str, *, most: int = 4096) -> str | None:
        value = self.members.get(name)
        if value is None:
            return None
        if not isinstance(value, str):
            raise self.wrong(name, value, "a text")
        if len(value) > most:
            raise refused(self.path(name), f"{len(value)} characters, the most is {most}")
        return value

    def flag(self, name: str) -> bool:
        """False when it is not there."""
        value = self.members.get(name, False)
        if not isinstance(value, bool):
            raise self.wrong(name, value, "true or false")
        return value

    def whole(self, name: str, low: int, high: int) -> int | None:
        value = self.members.get(name)
        if value is None:
            return None
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self.wrong(name, value, f"a whole number from {low} to {high}")
        return value

    def number(self, name: str, low: float, high: float) -> float | None:
        value = self.members.get(name)
        if value is None:
            return None
        fits = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not fits or not math.isfinite(value) or not low <= value <= high:  # type: ignore[arg-type, operator]
            raise self.wrong(name, value, f"a number from {low:g} to {high:g}")
        return float(value)  # type: ignore[arg-type]

    def items(self, name: str, most: int) -> Sequence[object] | None:
        value = self.members.get(name)
        if value is None:
            return None
        if not isinstance(value, list):
            raise self.wrong(name, value, "a list")
        if len(value) > most:
            raise refused(self.path(name), f"{len(value)} items, the most is {most}")
        return value

    def fields(self, name: str) -> Fields | None:
        value = self.members.get(name)
        return None if value is None else Fields(value, self.path(name))

    def wrong(self, name: str, value: object, needed: str) -> HttpError:
        """The refusal of a value that is not ``needed``."""
        return refused(self.path(name), f"{shown(value)} is given, {needed} is needed", code="invalid_type")


def shown(value: object) -> str:
    """A value in a message: short."""
    if isinstance(value, (Mapping, list)):
        return "an object" if isinstance(value, Mapping) else "a list"
    text = repr(value) if len(str(value)) <= 4 * _SHOWN else repr(str(value)[:_SHOWN])
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
