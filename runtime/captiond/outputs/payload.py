"""Events as JSON text for a line, a message or a request: ASCII, bounded, and valid whatever a model has written."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping

from runtime.captiond.events import Event, as_json
from runtime.captiond.text import one_line

MAX_DEPTH = 16
_MAX_ITEMS = 256
_MAX_NAME_CHARS = 256
_MAX_WRITTEN_CHARS = 65_536


def as_written(text: str) -> str:
    """``text`` with its controls, which JSON in ASCII makes harmless, up to 65,536 characters."""
    return text[:_MAX_WRITTEN_CHARS]


def json_text(event: Event, clean: Callable[[str], str] = one_line, **more: object) -> str:
    """One JSON object on one line: the event and ``more``. ``clean`` makes texts harmless and limits them."""
    return json.dumps(bounded({**as_json(event), **more}, clean), allow_nan=False, separators=(",", ":"))


def bounded(value: object, clean: Callable[[str], str] = one_line, depth: int = 0) -> object:
    """``value`` of JSON types: numbers that JSON lacks become null, what is nested too deep or too long is cut."""
    if isinstance(value, str):
        return clean(value)
    if value is None or isinstance(value, int):
        return value
    if isinstance(value, float):
        return round(value, 3) if math.isfinite(value) else None
    if depth >= MAX_DEPTH:
        return "…"
    if isinstance(value, Mapping):
        items = list(value.items())[:_MAX_ITEMS]
        return {one_line(str(name), _MAX_NAME_CHARS): bounded(content, clean, depth + 1) for name, content in items}
    if isinstance(value, (list, tuple)):
        return [bounded(content, clean, depth + 1) for content in value[:_MAX_ITEMS]]
    return clean(str(value))
