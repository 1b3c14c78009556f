"""How a setting is declared: a dataclass field that knows its meaning, its unit and its limits.

`runtime.captiond.config.read` checks a TOML table against such a class, and the reference page is written from it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Rules:
    """What a value must be, beyond the type of its field. ``reload``: a change takes effect without a restart."""

    doc: str
    low: float | None = None
    high: float | None = None
    low_open: bool = False
    choices: tuple[str, ...] = ()
    pattern: str | None = None
    max_chars: int = 4096
    max_items: int = 64
    secret: bool = False
    reload: bool = True


_RULES = "rules"


def setting(
    default: Any = dataclasses.MISSING,
    *,
    doc: str,
    low: float | None = None,
    high: float | None = None,
    low_open: bool = False,
    choices: tuple[str, ...] = (),
    pattern: str | None = None,
    max_chars: int = 4096,
    max_items: int = 64,
    secret: bool = False,
    reload: bool = True,
) -> Any:
    """A field of a settings class. Without ``default`` it must be given. Limits concern numbers, or each item."""
    rules = Rules(doc, low, high, low_open, choices, pattern, max_chars, max_items, secret, reload)
    return dataclasses.field(default=default, metadata={_RULES: rules})


def table(factory: Any, *, doc: str, max_items: int = 64, reload: bool = True) -> Any:
    """A field that is a table (``factory`` is a settings class) or an array of tables (``factory`` is tuple)."""
    return dataclasses.field(default_factory=factory, metadata={_RULES: Rules(doc, max_items=max_items, reload=reload)})


def rules_of(item: dataclasses.Field[Any]) -> Rules:
    """The rules of a field of a settings class."""
    rules = item.metadata[_RULES]
    assert isinstance(rules, Rules)
    return rules
