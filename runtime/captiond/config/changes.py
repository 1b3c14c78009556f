"""What a new configuration changes: what can take effect at once, and what waits for the next start."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

from runtime.captiond.config.setting import key_of, rules_of
from runtime.captiond.config.settings import Config

_T = TypeVar("_T")


def reloadable(running: Config, wanted: Config) -> tuple[Config, list[str]]:
    """``wanted`` with the values of ``running`` where a change needs a restart, and the names of those settings."""
    kept: list[str] = []
    return _merge(running, wanted, "", kept), kept


def _merge(running: _T, wanted: _T, where: str, kept: list[str]) -> _T:
    changes: dict[str, Any] = {}
    for item in dataclasses.fields(wanted):  # type: ignore[arg-type]
        before, after = getattr(running, item.name), getattr(wanted, item.name)
        rules, place = rules_of(item), f"{where}{key_of(item)}"
        if before == after:
            continue
        if rules.item is not None and not rules.toml_name:
            changes[item.name] = _merge(before, after, f"{place}.", kept)
        elif not rules.reload:
            kept.append(place)
            changes[item.name] = before
    return dataclasses.replace(wanted, **changes)  # type: ignore[type-var]
