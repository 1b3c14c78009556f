"""Reads JSON files that somebody else wrote: bounded in size and depth, no duplicate keys, no NaN.

Used for the manifest and for requests at run time, and for the configuration files of a checkpoint at export.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from runtime.errors import VlmError

MAX_DEPTH = 24


def read_json(path: Path, *, max_bytes: int, error: type[VlmError], hint: str | None = None) -> Any:
    """Parses one JSON file of at most ``max_bytes`` bytes and ``MAX_DEPTH`` levels.

    Raises ``error`` (a VlmError class) that names the file and what is wrong with it: missing, too large, not UTF-8,
    not JSON, a key given twice, NaN or Infinity, nested too deeply.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(max_bytes + 1)
    except OSError as problem:
        raise error(f"{path}: cannot be read: {problem.strerror or problem}", hint=hint) from problem
    if len(raw) > max_bytes:
        raise error(f"{path}: larger than the limit of {max_bytes} bytes", hint=hint)
    return parse_json(raw, name=str(path), error=error, hint=hint)


def parse_json(raw: bytes, *, name: str, error: type[VlmError], hint: str | None = None) -> Any:
    """Parses bytes under the same limits as `read_json`; ``name`` appears in the message."""

    def object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        parsed = dict(pairs)
        if len(parsed) != len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise ValueError(f"the key {twice!r} appears twice in one object")
        return parsed

    def refuse_constant(text: str) -> float:
        raise ValueError(f"{text} is not a JSON number")

    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=object_of, parse_constant=refuse_constant)
    except RecursionError as problem:
        raise error(f"{name}: nested more than {MAX_DEPTH} levels deep", hint=hint) from problem
    except ValueError as problem:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise error(f"{name}: not valid JSON: {problem}", hint=hint) from problem
    if _depth(value) > MAX_DEPTH:
        raise error(f"{name}: nested more than {MAX_DEPTH} levels deep", hint=hint)
    return value


def _depth(value: Any) -> int:
    level, depth = [value], 0
    while level:
        depth += 1
        inner: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                inner.extend(item.values())
            elif isinstance(item, list):
                inner.extend(item)
        level = inner
    return depth
