"""The report on the mutants, and the list of those that change nothing a result depends on."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from kernels.emulator.mutants.trial import MODES, Verdict

REPORT = Path(__file__).with_name("report.jsonl")
EQUIVALENT = Path(__file__).with_name("equivalent.json")
_ADDRESS = re.compile(r"0x[0-9a-f]+")
_FOLDER = re.compile(r"(?<!\S)/\S*/(?=[\w.]+:\d)")  # sanitizers name files by where they were compiled


def equivalents() -> Mapping[str, str]:
    """Mutants that cannot be caught, by name, with the reason."""
    found: dict[str, str] = json.loads(EQUIVALENT.read_text(encoding="utf-8"))
    return found


def write_report(path: Path, verdicts: Sequence[Verdict]) -> None:
    """One JSON line per mutant."""
    known = equivalents()
    lines = []
    for verdict in verdicts:
        row = verdict.row() | {"detail": plain(verdict.detail)}
        if not verdict.mode and verdict.name in known:
            row |= {"check": "equivalent", "detail": known[verdict.name]}
        lines.append(json.dumps(row, ensure_ascii=False))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def plain(detail: str) -> str:
    """What was reported, without what differs from run to run: addresses and folders of the machine."""
    return _ADDRESS.sub("0x…", _FOLDER.sub("", detail))


def table(verdicts: Sequence[Verdict]) -> str:
    """How many mutants of each rule were caught by which mode's check."""
    checks = sorted({(verdict.mode, verdict.check) for verdict in verdicts if verdict.mode}, key=_order)
    counts = Counter((verdict.rule.split(" ")[0], verdict.mode, verdict.check) for verdict in verdicts)
    heads = ["rule", *(" ".join(check) for check in checks), "none", "all"]
    rows = [heads]
    for rule in sorted({verdict.rule.split(" ")[0] for verdict in verdicts}):
        caught = [counts[(rule, *check)] for check in checks]
        none = counts[(rule, "", "")]
        rows.append([rule, *map(str, caught), str(none), str(sum(caught) + none)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(heads))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def _order(check: tuple[str, str]) -> tuple[int, str]:
    mode, name = check
    return (MODES.index(mode) if mode in MODES else len(MODES), name)
