"""The committed table of what each kernel takes on each SM, and the comparison of a build with it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kernels.errors import ImageError
from kernels.nvrtc.store import Entry, write_atomically

TABLE = Path(__file__).with_name("registers.json")
COLUMNS = ("registers", "shared_bytes", "local_bytes", "spill_bytes")
Table = dict[str, dict[str, Any]]


def table_of(entries: Mapping[str, Entry]) -> Table:
    """{"sm_87": {"nvrtc": "12.6", "kernels": {entry: [registers, shared, local, spill bytes]}}}, without PTX."""
    table: Table = {}
    for name, entry in sorted(entries.items()):
        if not entry.kernels:
            continue
        arch = table.setdefault(name.split(".")[1], {"nvrtc": entry.nvrtc, "kernels": {}})
        arch["kernels"].update({kernel: list(asdict(taken).values()) for kernel, taken in entry.kernels.items()})
    return table


def read_table() -> Table:
    """The committed table. ImageError when it is missing or unreadable."""
    try:
        value = json.loads(TABLE.read_text(encoding="utf-8"))
        return {arch: {"nvrtc": item["nvrtc"], "kernels": dict(item["kernels"])} for arch, item in value.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
        raise ImageError(f"{TABLE} cannot be read: {problem!r}", hint="python -m kernels.build --table") from problem


def write_table(entries: Mapping[str, Entry]) -> None:
    """Replace the committed table: a kernel per line."""
    blocks = []
    for arch, item in table_of(entries).items():
        rows = ",\n".join(f"   {json.dumps(name)}: {json.dumps(row)}" for name, row in sorted(item["kernels"].items()))
        blocks.append(f' "{arch}": {{\n  "nvrtc": "{item["nvrtc"]}",\n  "kernels": {{\n{rows}\n  }}\n }}')
    write_atomically(TABLE, ("{\n" + ",\n".join(blocks) + "\n}\n").encode())


def differences(entries: Mapping[str, Entry], *, whole: bool = True) -> list[str]:
    """What a build has otherwise than the table, kernel by kernel, and every kernel that spills or uses a stack.

    SMs that were not built are not compared. whole: kernels of the table that the build lacks are differences too.
    """
    committed = read_table()
    found = []
    for arch, item in table_of(entries).items():
        wanted = committed.get(arch, {"nvrtc": item["nvrtc"], "kernels": {}})
        if wanted["nvrtc"] != item["nvrtc"]:
            found.append(f"{arch}: the table was made with NVRTC {wanted['nvrtc']}, this is {item['nvrtc']}")
            continue
        for name, row in item["kernels"].items():
            listed = wanted["kernels"].get(name)
            if listed is None:
                found.append(f"{arch} {name}: not in the table")
            elif listed != row:
                found.append(f"{arch} {name}: {_words(row)}; the table says {_words(listed)}")
            if row[2] or row[3]:
                found.append(f"{arch} {name}: {row[2]} bytes of stack and {row[3]} of spills, where none are allowed")
        missing = sorted(set(wanted["kernels"]) - set(item["kernels"])) if whole else []
        found += [f"{arch} {name}: in the table alone" for name in missing]
    return found


def _words(row: list[int]) -> str:
    return ", ".join(f"{value} {name}" for value, name in zip(row, COLUMNS, strict=True))
