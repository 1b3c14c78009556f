"""docs/captiond.md says what the code does."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import captiond_docs

from runtime.captiond.config import config_of
from runtime.captiond.config.settings import Config
from runtime.captiond.config.toml_file import read_toml
from runtime.captiond.events import EVENT_TYPES

TEXT = captiond_docs.PAGE.read_text(encoding="utf-8")


def test_generated_parts_are_what_the_code_gives_now() -> None:
    assert captiond_docs.written(TEXT) == TEXT, "run python scripts/captiond_docs.py"


def test_every_setting_and_event_has_its_row() -> None:
    def keys(cls: type) -> list[str]:
        found = []
        for item in dataclasses.fields(cls):
            inner = captiond_docs.rules_of(item).item
            found += [item.name] if inner is None else keys(inner)
        return found

    rows = re.findall(r"^\| `(\w+)` \|", TEXT, re.MULTILINE)
    assert set(keys(Config)) <= set(rows)
    assert {kind.type for kind in EVENT_TYPES} <= set(rows)
    assert len(re.findall(r"^\| `vlm_\w+` \|", TEXT, re.MULTILINE)) >= 30


def test_example_of_the_page_is_a_configuration(tmp_path: Path) -> None:
    (example,) = re.findall(r"^```toml\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    path = tmp_path / "captiond.toml"
    path.write_text(example)
    config = config_of(read_toml(path), tmp_path)
    assert [rule.name for rule in config.sources[0].rules] == ["visitor"]


def test_alerts_name_series_and_labels_that_there_are() -> None:
    rows = re.findall(r"^\| `(vlm_\w+)` \| (\w+) \| ([\w, ]*) \|", TEXT, re.MULTILINE)
    labels = {name + ("_bucket" if kind == "histogram" else ""): set(names.split(", ")) for name, kind, names in rows}
    alerts = (captiond_docs.ROOT / "docs" / "captiond-alerts.yml").read_text(encoding="utf-8")
    used = re.findall(r"(vlm_\w+)(?:\{(\w+))?", alerts)
    assert len(used) >= 12
    assert [(name, label) for name, label in used if label not in {"", *labels.get(name, ("missing",))}] == []
    assert [name for name, _ in used if name not in labels] == []
