"""When a field of structured answers makes a rule active, and when it is over. Pure: time comes with each answer.

    becomes active    when the condition was met by every answer of the last ``on_after_s`` seconds, and ``cooldown_s``
                      have passed since it last became active
    becomes inactive  when every answer of the last ``off_after_s`` seconds was beyond ``release`` (or, without it, did
                      not meet the condition)

An answer that lacks the field, or has another type there than the rule's value, is not known: it changes nothing, and
what held before it holds through it. Numbers compare as numbers, whether whole or not; true and false are no numbers.
Used by the captioner.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from runtime.captiond.config.settings import RuleSettings

_NS_PER_S = 1_000_000_000


class RuleState:
    """One rule of one source, through its answers. Begins inactive."""

    def __init__(self, rule: RuleSettings) -> None:
        self._rule = rule
        self._path = rule.field.split(".")
        self._on_after_ns, self._off_after_ns, self._cooldown_ns = (
            round(seconds * _NS_PER_S) for seconds in (rule.on_after_s, rule.off_after_s, rule.cooldown_s)
        )
        self._since_ns: int | None = None  # from when on every known answer speaks for a change
        self._activated_ns: int | None = None
        self.active = False

    def step(self, fields: Mapping[str, object] | None, t_ns: int) -> bool | None:
        """The next answer, and when its frame was taken: True and False for a change, None when there is none.

        ``t_ns`` does not go back from one answer to the next. ``fields`` None: the answer has no fields.
        """
        wanted = self._wants_change(fields)
        if wanted is None:
            return None
        if not wanted:
            self._since_ns = None
            return None
        if self._since_ns is None:
            self._since_ns = t_ns
        if t_ns - self._since_ns < (self._off_after_ns if self.active else self._on_after_ns):
            return None
        if not self.active:
            if self._activated_ns is not None and t_ns - self._activated_ns < self._cooldown_ns:
                return None
            self._activated_ns = t_ns
        self._since_ns = None
        self.active = not self.active
        return self.active

    def _wants_change(self, fields: Mapping[str, object] | None) -> bool | None:
        """Whether this answer speaks for the other state; None when it says nothing."""
        value: object = fields
        for key in self._path:
            if not isinstance(value, Mapping) or key not in value:
                return None
            value = value[key]
        met = _met(self._rule.op, value, self._rule.value)
        if met is None or not self.active:
            return met
        return not met and self._released(value)

    def _released(self, value: object) -> bool:
        release = self._rule.release
        if release is None or not isinstance(value, (int, float)):
            return True
        if self._rule.op in (">", ">="):
            return value < release
        return value > release if self._rule.op in ("<", "<=") else True


def _met(op: str, value: object, wanted: object) -> bool | None:
    """Whether ``value op wanted`` holds; None for types that do not compare."""
    if op == "in":
        if not isinstance(wanted, Sequence) or isinstance(wanted, str):
            return None
        alike = [_same(value, item) for item in wanted]
        return None if all(same is None for same in alike) else any(alike)
    if op in ("==", "!="):
        same = _same(value, wanted)
        return None if same is None else same is (op == "==")
    if _kind(value) != "number" or _kind(wanted) != "number":
        return None
    assert isinstance(value, (int, float)) and isinstance(wanted, (int, float)), "numbers"
    if op == ">":
        return value > wanted
    if op == ">=":
        return value >= wanted
    return value < wanted if op == "<" else value <= wanted


def _same(value: object, wanted: object) -> bool | None:
    """Equality of JSON values; None when they are of different types."""
    kind = _kind(value)
    if kind is None or kind != _kind(wanted):
        return None
    if isinstance(value, Mapping) and isinstance(wanted, Mapping):
        return value.keys() == wanted.keys() and all(_same(value[key], wanted[key]) is True for key in value)
    if isinstance(value, (list, tuple)) and isinstance(wanted, (list, tuple)):
        return len(value) == len(wanted) and all(_same(a, b) is True for a, b in zip(value, wanted, strict=True))
    return value == wanted


def _kind(value: object) -> str | None:
    """The JSON type of a value; None for what JSON does not have."""
    if isinstance(value, float) and math.isnan(value):
        return None
    kinds = (
        (bool, "boolean"),
        ((int, float), "number"),
        (str, "string"),
        (Mapping, "object"),
        ((list, tuple), "array"),
    )
    return "null" if value is None else next((name for types, name in kinds if isinstance(value, types)), None)
