"""Write the reference parts of docs/captiond.md from the code: settings, events, routes, topics, metrics.

    python scripts/captiond_docs.py            # a test compares the page with what this writes
"""

from __future__ import annotations

import dataclasses
import re
import sys
import typing
from collections.abc import Callable, Iterator
from pathlib import Path

from runtime.captiond.config.settings import Config
from runtime.captiond.config.setting import Rules, key_of, rules_of
from runtime.captiond.config.tables import limits
from runtime.captiond.events import EVENT_TYPES, FrameFacts

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "captiond.md"
_PART = re.compile(r"(<!-- begin (\w+) -->\n).*?(<!-- end \2 -->)", re.DOTALL)


def settings() -> str:
    """One table per TOML table."""
    return "\n".join(_tables(Config, "", array=False))


def _tables(cls: type, name: str, *, array: bool) -> Iterator[str]:
    heading = f"[[{name}]]" if array else f"[{name}]" if name else "top level"
    words = (cls.__doc__ or "").split("``: ", 1)[-1].strip() if name else "keys outside every table"
    yield f"### `{heading}`\n\n{words[:1].upper()}{' '.join(words[1:].split())}\n"
    plain = [item for item in dataclasses.fields(cls) if rules_of(item).item is None]
    if plain:
        yield "| key | default | allowed | |\n|---|---|---|---|"
        hints = typing.get_type_hints(cls)
        yield "\n".join(_row(item, hints[item.name]) for item in plain) + "\n"
    for item in dataclasses.fields(cls):
        rules = rules_of(item)
        if rules.item is not None:
            yield from _tables(rules.item, f"{name}.{key_of(item)}".lstrip("."), array=bool(rules.toml_name))


def _row(item: dataclasses.Field[object], hint: object) -> str:
    rules = rules_of(item)
    default = "required" if item.default is dataclasses.MISSING else _toml(item.default)
    restart = "" if rules.reload else " (restart)"
    return f"| `{item.name}` | {default} | {_allowed(rules, hint)} | {_cell(rules.doc)}{restart} |"


def _allowed(rules: Rules, hint: object) -> str:
    if rules.choices:
        return ", ".join(f"`{choice}`" for choice in rules.choices)
    if rules.low is not None or rules.high is not None:
        return limits(rules)
    if rules.pattern:
        return f"`{_cell(rules.pattern)}`"
    return {bool: "true, false"}.get(hint, "") if isinstance(hint, type) else ""


def _toml(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return "`[" + ", ".join(f'"{entry}"' for entry in value) + "]`"
    return f'`"{value}"`' if isinstance(value, str) else f"`{value}`"


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


def events() -> str:
    """One row per event: its type, its fields, what it means."""
    rows = ["| type | fields | |", "|---|---|---|"]
    for kind in EVENT_TYPES:
        names = ", ".join(f"`{item.name}`" for item in dataclasses.fields(kind))
        rows.append(f"| `{kind.type}` | {names} | {_cell(' '.join((kind.__doc__ or '').split()))} |")
    frame = ", ".join(f"`{item.name}`" for item in dataclasses.fields(FrameFacts))
    return "\n".join(rows) + f"\n\n`frame` is an object: {frame}. {' '.join((FrameFacts.__doc__ or '').split())}\n"


PARTS: dict[str, Callable[[], str]] = {"settings": settings, "events": events}


def written(text: str) -> str:
    """The page with its generated parts renewed."""
    found = {match[2] for match in _PART.finditer(text)}
    if found != set(PARTS):
        raise SystemExit(f"{PAGE.name} has the parts {sorted(found)}, expected {sorted(PARTS)}")
    return _PART.sub(lambda match: f"{match[1]}\n{PARTS[match[2]]()}\n{match[3]}", text)


def main() -> int:
    before = PAGE.read_text(encoding="utf-8")
    after = written(before)
    PAGE.write_text(after, encoding="utf-8")
    print(f"{PAGE.name}: {'renewed' if after != before else 'unchanged'}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
