"""How a setting is declared: a dataclass field that knows its meaning, its unit and its limits.

`runtime.captiond.config.read` checks a TOML table against such a class, and the reference page is written from it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Rules:
    """What a value must be, beyond the type of its field.

    ``reload``: a change takes effect without a restart. ``item``: the settings class of a table, or of each table of an
    array whose key is ``toml_name``.
    """

    doc: str
    low: float | None = None
    high: float | None = None
    low_open: bool = False
    choices: tuple[str, ...] = ()
    pattern: str | None = None
    max_chars: int = 4096
    max_items: int = 64
    reload: bool = True
    toml_name: str = ""
    item: type | None = None


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
    reload: bool = True,
) -> Any:
    """A field of a settings class. Without ``default`` it must be given. Limits: of numbers, or of items."""
    rules = Rules(doc, low, high, low_open, choices, pattern, max_chars, max_items, reload)
    return dataclasses.field(default=default, metadata={_RULES: rules})


def table(cls: type, *, doc: str, reload: bool = True) -> Any:
    """A field that is a table of the settings class ``cls``."""
    return dataclasses.field(default_factory=cls, metadata={_RULES: Rules(doc, reload=reload, item=cls)})


def tables(cls: type, toml_name: str, *, doc: str, max_items: int = 64) -> Any:
    """A field that is an array of tables of ``cls``, written ``[[toml_name]]``."""
    rules = Rules(doc, max_items=max_items, toml_name=toml_name, item=cls)
    return dataclasses.field(default=(), metadata={_RULES: rules})


def rules_of(item: dataclasses.Field[Any]) -> Rules:
    """The rules of a field of a settings class."""
    rules = item.metadata[_RULES]
    assert isinstance(rules, Rules)
    return rules


def key_of(item: dataclasses.Field[Any]) -> str:
    """The field's key in a TOML table."""
    return rules_of(item).toml_name or item.name
