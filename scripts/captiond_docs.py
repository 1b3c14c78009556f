"""Write the reference parts of docs/captiond.md from the code: settings, events, routes, topics, metrics.

python scripts/captiond_docs.py            # a test compares the page with what this writes
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import re
import sys
import typing
from collections.abc import Callable, Iterator
from pathlib import Path

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from runtime.captiond.config.setting import Rules, key_of, rules_of  # noqa: E402
from runtime.captiond.config.settings import NAME, Config  # noqa: E402
from runtime.captiond.config.tables import limits  # noqa: E402
from runtime.captiond.events import EVENT_TYPES, CaptionFailed, ChatFinished, FrameFacts, Notice  # noqa: E402
from runtime.captiond.http.route import Route  # noqa: E402
from tests.runtime.captiond import sample_events  # noqa: E402
from tests.runtime.captiond.http.parts import services, serving  # noqa: E402

PAGE = ROOT / "docs" / "captiond.md"
_PART = re.compile(r"(<!-- begin (\w+) -->\n).*?(<!-- end \2 -->)", re.DOTALL)


def settings() -> str:
    """One table per TOML table."""
    return "\n".join(_tables(Config, "", array=False))


def _tables(cls: type, name: str, *, array: bool) -> Iterator[str]:
    heading = f"[[{name}]]" if array else f"[{name}]" if name else "top level"
    words = (cls.__doc__ or "").split("``: ", 1)[-1].strip() if name else "keys outside every table"
    words = " ".join(words.split())
    yield f"### `{heading}`\n\n{words[:1].upper()}{words[1:]}\n"
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
    if rules.pattern == NAME:
        return "a name: a-z, 0-9, `-`, `_`"
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


def routes() -> str:
    """One row per route and who may ask it."""
    served, _ = asyncio.run(_served())
    rows = ["| route | permission |", "|---|---|"]
    access = {(route.path, route.method): " or ".join(route.access) for route in served}
    rows += [f"| `{method} {path}` | {who} |" for (path, method), who in sorted(access.items())]
    return "\n".join(rows) + "\n"


def metrics() -> str:
    """One row per family of series."""
    _, text = asyncio.run(_served())
    rows = ["| series | kind | labels | |", "|---|---|---|---|"]
    for family in sorted(text_string_to_metric_families(text), key=lambda family: family.name):
        labels = sorted({name for sample in family.samples for name in sample.labels} - {"le"})
        name = family.name + ("_total" if family.type == "counter" else "")
        rows.append(f"| `{name}` | {family.type} | {', '.join(labels)} | {_cell(family.documentation)} |")
    return "\n".join(rows) + "\n"


async def _served() -> tuple[list[Route], str]:
    """The routes, and what /metrics says, of a server whose every family has something to count."""
    parts = services()
    parts.processes = lambda: {"main": [os.getpid()]}
    async with serving(parts=parts) as running, aiohttp.ClientSession() as client:
        (await client.get(running.url + "/health")).close()
        (await client.get(running.url + "/health", headers={"Host": "elsewhere.example"})).close()
        for event in (
            sample_events.started(1),
            sample_events.delta(1, 0, "a"),
            sample_events.delta(1, 1, "b"),
            sample_events.finished(1),
            sample_events.rule(),
            CaptionFailed(2, "door", "default", "EngineError", "it was restarted"),
            ChatFinished("chat-1", "stop", 5, 4, 60.0, 91.0),
            Notice("warning", "jsonl", "the disk is full"),
        ):
            running.services.bus.publish(event)
        async with client.get(running.url + "/metrics") as answer:
            return list(running.server.routes), await answer.text()


PARTS: dict[str, Callable[[], str]] = {"settings": settings, "events": events, "routes": routes, "metrics": metrics}


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
