"""The table of the forty behaviours and the tests agree."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

from tests.imports import ROOT, parsed

TABLE = ROOT / "docs" / "behaviours.md"
LINE = re.compile(r"^\| (\d+) \| (.+?) \| (.+) \|$", re.MULTILINE)
TEST = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")
NUMBERS = range(1, 41)


@functools.cache
def rows() -> dict[int, tuple[str, set[tuple[str, str]]]]:
    """Promise and (file, test) of each line of the table."""
    found = LINE.findall(TABLE.read_text(encoding="utf-8"))
    return {int(number): (promise, set(TEST.findall(tests))) for number, promise, tests in found}


def functions_of(path: Path) -> set[str]:
    """Names of the tests in a file, those of classes too."""
    return {node.name for node in ast.walk(parsed(path)) if isinstance(node, ast.FunctionDef)}


@functools.cache
def named_tests() -> dict[int, set[tuple[str, str]]]:
    """(file, test) of every test that is called after a behaviour, by its number."""
    found: dict[int, set[tuple[str, str]]] = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for name in functions_of(path):
            if match := re.match(r"test_behaviour_(\d+)_\w", name):
                found.setdefault(int(match[1]), set()).add((str(path.relative_to(ROOT)), name))
    return found


def test_the_table_has_a_line_for_each_of_the_forty() -> None:
    numbers = [int(number) for number, _, _ in LINE.findall(TABLE.read_text(encoding="utf-8"))]
    assert numbers == list(NUMBERS)
    assert set(named_tests()) == set(NUMBERS)
    assert len({promise for promise, _ in rows().values()}) == len(NUMBERS)


@pytest.mark.parametrize("number", NUMBERS)
def test_every_test_called_after_a_behaviour_stands_in_its_line(number: int) -> None:
    named, (_, listed) = named_tests()[number], rows()[number]
    assert named, f"no test is called test_behaviour_{number:02}_..."
    assert sorted(named - listed) == [], f"line {number} of {TABLE.name} lacks these"


@pytest.mark.parametrize("number", NUMBERS)
def test_every_test_that_a_line_names_exists(number: int) -> None:
    missing = [
        f"{file}::{name}"
        for file, name in sorted(rows()[number][1])
        if not (ROOT / file).is_file() or name not in functions_of(ROOT / file)
    ]
    assert missing == []
