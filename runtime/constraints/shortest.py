"""The shortest texts of a schema's parts, and the next step of a plan made of them.

Each step is offered to the grammar before it counts; see `runtime.constraints.plan`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from runtime.constraints.grammar import next_bytes

MAX_PART_BYTES = 8192
_MAX_TRIES = 6000  # of one plan: some 40 ms
_MAX_LAYER = 32
_MAX_FILL = 1024
_FILLERS = b"a0"
_CLOSING = b'"}],'
Find = Callable[[Mapping[str, Any]], "bytes | None"]


@dataclass(frozen=True, slots=True)
class Parts:
    """``members``: ``"key":value`` of objects, required ones first; ``values``: whole values, the shortest first."""

    root: bytes | None
    members: tuple[bytes, ...]
    values: tuple[bytes, ...]


def shortest_parts(schema: Mapping[str, Any], find: Find) -> Parts:
    """The shortest text of each part of a plain schema (`runtime.constraints.schema`).

    ``find`` searches a text for a leaf that is not obvious: a pattern, a format, a range.
    """
    texts = _Texts(schema, find)
    root = texts.of(schema)
    required: dict[bytes, None] = {}
    values: dict[bytes, None] = {}
    for node in texts.nodes:
        value = texts.of(node)
        if value is not None:
            values[value] = None
        for key in node.get("required", ()):
            member = texts.member(node, key)
            if member is not None:
                required[member] = None
    return Parts(root, tuple(required), tuple(sorted(values, key=len)))


class _Texts:
    """Shortest texts by node, found from the leaves upwards; parts without a finite value have none."""

    def __init__(self, schema: Mapping[str, Any], find: Find) -> None:
        self._defs = schema["$defs"]
        self._find = find
        self._texts: dict[int, bytes | None] = {}
        self.nodes = [*_nodes(schema), *(inner for node in self._defs.values() for inner in _nodes(node))]
        for node in self.nodes:
            if "enum" in node:
                values = (json.dumps(value, ensure_ascii=False).encode() for value in node["enum"])
                self._texts[id(node)] = min(values, key=len)
            elif node.get("type") not in (None, "object", "array"):
                self._texts[id(node)] = self._leaf(node)
        changed = True
        while changed:
            changed = False
            for node in reversed(self.nodes):
                if "enum" not in node and node.get("type") in (None, "object", "array"):
                    changed |= self._settle(node)

    def of(self, node: Mapping[str, Any]) -> bytes | None:
        """The text of one of `nodes`."""
        return self._texts.get(id(node))

    def member(self, node: Mapping[str, Any], key: str) -> bytes | None:
        value = self.of(node["properties"][key])
        return None if value is None else json.dumps(key, ensure_ascii=False).encode() + b":" + value

    def _settle(self, node: Mapping[str, Any]) -> bool:
        found, known = self._compound(node), self.of(node)
        if found is None or len(found) > MAX_PART_BYTES or (known is not None and len(known) <= len(found)):
            return False
        self._texts[id(node)] = found
        return True

    def _compound(self, node: Mapping[str, Any]) -> bytes | None:
        if "$ref" in node:
            target: dict[str, Any] = self._defs[node["$ref"].rsplit("/", 1)[1]]
            return self.of(target)
        for keyword in ("anyOf", "oneOf"):
            if keyword in node:
                known = [text for text in map(self.of, node[keyword]) if text is not None]
                return min(known, key=len) if known else None
        if node["type"] == "object":
            needed = [key for key in node.get("properties", ()) if key in node.get("required", ())]
            members = [self.member(node, key) for key in needed]
            return None if None in members else b"{" + b",".join(m for m in members if m is not None) + b"}"
        first = list(node.get("prefixItems", ()))
        items = [self.of(first[i] if i < len(first) else node["items"]) for i in range(node.get("minItems", 0))]
        return None if None in items else b"[" + b",".join(item for item in items if item is not None) + b"]"

    def _leaf(self, node: Mapping[str, Any]) -> bytes | None:
        kind = node["type"]
        if kind in ("boolean", "null"):
            return b"true" if kind == "boolean" else b"null"
        if kind == "string" and not {"pattern", "format"} & set(node):
            return b"".join((b'"', b"a" * int(node.get("minLength", 0)), b'"'))
        found: bytes | None = self._find(node)
        return found


def _nodes(node: Any) -> Iterator[dict[str, Any]]:
    """The schemas in ``node``, itself first; not its definitions."""
    yield node
    for keyword in ("anyOf", "oneOf", "prefixItems"):
        for inner in node.get(keyword, ()):
            yield from _nodes(inner)
    for keyword in ("items", "additionalProperties"):
        if isinstance(node.get(keyword), dict):
            yield from _nodes(node[keyword])
    for inner in node.get("properties", {}).values():
        yield from _nodes(inner)


class Effort:
    """How many more states a plan may look at before it is given up."""

    def __init__(self) -> None:
        self.left = _MAX_TRIES

    def spend(self) -> bool:
        """Whether one more is granted."""
        self.left -= 1
        return self.left >= 0


def shortest_step(matcher: Any, string: bytes | None, parts: Parts, effort: Effort, *, fresh: bool) -> bytes | None:
    """Some bytes of a short way to the end; None where the search gives up. ``string``, ``fresh``: `plan.JsonText`."""
    forced: bytes = matcher.compute_ff_bytes()
    if forced:
        return forced
    may = next_bytes(matcher)
    if not may:
        return None
    if string is not None:
        if 0x22 in may:
            return b'"'
        ending = _key_end(matcher, string, parts) or _filled(matcher, may, effort)
        return ending or _searched(matcher, effort, string=True)
    for closing in (b"}", b"]"):
        if closing[0] in may:
            return closing
    for part in (*parts.members, *parts.values):
        offer = part if fresh else b"," + part  # a number that has begun is not carried on with a whole value
        if offer[0] in may and matcher.validate_tokens(list(offer)) == len(offer):
            return offer
    return _searched(matcher, effort, string=False)


def _key_end(matcher: Any, string: bytes, parts: Parts) -> bytes | None:
    """The rest of a member whose key has begun."""
    for member in parts.members:
        rest = member[1 + len(string) :]
        if member[1:].startswith(string) and matcher.validate_tokens(list(rest)) == len(rest):
            return rest
    return None


def _filled(matcher: Any, may: bytes, effort: Effort) -> bytes | None:
    """The same character until the string may end: for those that are too short yet."""
    for filler in _FILLERS:
        if filler not in may:
            continue
        trial = matcher.deep_copy()
        count = 0
        while count < _MAX_FILL and effort.spend() and trial.try_consume_tokens([filler]) == 1:
            count += 1
            if trial.validate_tokens([0x22]) == 1:
                return bytes([filler]) * count
    return None


def _searched(matcher: Any, effort: Effort, *, string: bool) -> bytes | None:
    """Search byte by byte, breadth first, for a place where something closes; alike places are looked at once."""
    layer: list[tuple[bytes, Any, bytes]] = [(b"", matcher, next_bytes(matcher))]
    while layer:
        following: dict[bytes, tuple[bytes, Any, bytes]] = {}
        for path, state, may in layer:
            for value in may:
                if not effort.spend():
                    return None
                trial = state.deep_copy()
                if trial.try_consume_tokens([value]) != 1:
                    continue
                reached, then = path + bytes([value]), next_bytes(trial)
                if trial.is_accepting() or _closes(reached, then, string=string):
                    return reached
                following.setdefault(then, (reached, trial, then))
        layer = list(following.values())[:_MAX_LAYER]
    return None


def _closes(path: bytes, may: bytes, *, string: bool) -> bool:
    """Whether what is open can be closed behind ``path``, where ``may`` can come."""
    if not string:
        return any(value in may for value in _CLOSING)
    return 0x22 in may and (len(path) - len(path.rstrip(b"\\"))) % 2 == 0
