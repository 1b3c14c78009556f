"""How an answer could end from where it stands: a text that is known to be valid, kept at hand after each token.

A plan is found by trying, and believed only when the grammar itself has taken it to its end. So a plan is always sound;
it is usually, not always, the shortest. Tries go from the likely to the costly: what was planned before, what must
come, what closes, the shortest text of each part of the schema, and at last a search byte by byte.
"""

from __future__ import annotations

from typing import Any, Protocol

from runtime.constraints.grammar import next_bytes
from runtime.constraints.shortest import Effort, Parts, shortest_step

MAX_PLAN_BYTES = 16_384
_CUTS = 16
_STRUCTURE = frozenset(b'",]}')
_BEFORE_VALUES = (b":", b",", b"[", b"{")


class Planner(Protocol):
    """``plan``: bytes that make the answer whole; empty when it is."""

    plan: bytes

    def after(self, data: bytes) -> bytes | None:
        """A plan for when ``data`` has come, or None where none was found; nothing changes."""

    def advance(self, data: bytes, plan: bytes) -> None:
        """``data`` has come, ``plan`` is how it goes on, as `after` said."""

    @property
    def ended(self) -> bool:
        """Whether nothing but the end can come."""


class SchemaPlanner:
    """Plans for JSON. ``matcher`` goes byte by byte and is the planner's own."""

    def __init__(self, matcher: Any, parts: Parts, plan: bytes) -> None:
        self._matcher = matcher
        self._parts = parts
        self._text = JsonText()
        self.plan = plan

    @property
    def ended(self) -> bool:
        return bool(self._matcher.is_stopped())

    def after(self, data: bytes) -> bytes | None:
        if self.plan.startswith(data):
            return self.plan[len(data) :]
        matcher = self._matcher.deep_copy()
        if matcher.try_consume_tokens(list(data)) < len(data):
            return None
        return completion(matcher, self._text.after(data), self._parts, self.plan)

    def advance(self, data: bytes, plan: bytes) -> None:
        self._matcher.consume_tokens(list(data))
        self._text = self._text.after(data)
        self.plan = plan


class ChoicePlanner:
    """Plans for one of several texts: the shortest that begins with what has come."""

    def __init__(self, choices: tuple[bytes, ...]) -> None:
        self._rest = sorted(choices, key=len)
        self.plan = self._rest[0]

    @property
    def ended(self) -> bool:
        return self._rest == [b""]

    def after(self, data: bytes) -> bytes | None:
        return next((text[len(data) :] for text in self._rest if text.startswith(data)), None)

    def advance(self, data: bytes, plan: bytes) -> None:
        self._rest = [text[len(data) :] for text in self._rest if text.startswith(data)]
        self.plan = plan


class JsonText:
    """Where in JSON a text stops: ``string`` is what stands since the open quote, None outside of strings.
    ``fresh``: a value or a key could begin here, none has."""

    __slots__ = ("_escaped", "fresh", "string")

    def __init__(self, string: bytes | None = None, escaped: bool = False, fresh: bool = True) -> None:
        self.string = string
        self.fresh = fresh
        self._escaped = escaped

    def after(self, data: bytes) -> JsonText:
        """Where it stops when ``data`` follows."""
        string, escaped = self.string, self._escaped
        for value in data:
            if string is None:
                string = b"" if value == 0x22 else None
            elif escaped or value not in (0x22, 0x5C):
                string, escaped = string + bytes([value]), False
            elif value == 0x5C:
                string, escaped = string + b"\\", True
            else:
                string = None
        return JsonText(string, escaped, string is None and data[-1:] in _BEFORE_VALUES)


def completion(matcher: Any, text: JsonText, parts: Parts, before: bytes = b"") -> bytes | None:
    """Bytes that lead ``matcher``, which they are fed to, to an end. ``before``: a plan from shortly before."""
    plan = bytearray()
    effort = Effort()
    while len(plan) <= MAX_PLAN_BYTES:
        if matcher.is_error():
            return None
        if matcher.is_accepting():
            return bytes(plan)
        rest = _still_valid(matcher, before)
        if rest is not None:
            return bytes(plan) + rest
        step = shortest_step(matcher, text.string, parts, effort, fresh=text.fresh)
        if not step or not matcher.consume_tokens(list(step)):
            return None
        plan += step
        text = text.after(step)
    return None


def _still_valid(matcher: Any, before: bytes) -> bytes | None:
    """An end of ``before`` that makes the answer whole from here."""
    may = None
    cuts = 0
    for start, value in enumerate(before):
        if value not in _STRUCTURE:
            continue
        may = next_bytes(matcher) if may is None else may
        cuts += 1
        if cuts > _CUTS:
            return None
        if value in may:
            rest = before[start:]
            trial = matcher.deep_copy()
            if trial.try_consume_tokens(list(rest)) == len(rest) and trial.is_accepting():
                return rest
    return None
