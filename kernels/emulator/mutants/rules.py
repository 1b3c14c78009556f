"""Mutants by rule: every barrier, fence, cp.async wait, bounds guard and atomic of csrc taken away, one at a time."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from kernels.emulator.build import CSRC
from kernels.emulator.mutants.source import (
    Mutant,
    arguments,
    blanked,
    calls,
    condition_before,
    lines_from,
    read,
    statement_after,
)

EXEMPT = ("ptx.cuh", "state.cuh")  # the emulator's own side, and structures
RELATION = re.compile(r"(?<![<>-])(?:<=|>=|<|>)(?![<>])")
MEMORY = re.compile(r"\[|\*\s*\w|__ldg|ld_stream|->|load")
FLOATING = re.compile(r"[<>]=?\s*-?(?:\d+\.\d*f?|infinity\(\))")  # compares values, not places
CONSTANT = re.compile(r"[A-Z_0-9<>= ]+")  # decided by the compiler
EXIT = re.compile(r"\{?\s*(?:return|continue|break)\b")
LEAVES = re.compile(r"\b(?:return|continue|break)\b[^;]*;\s*\}$")
BARRIER = re.compile(r"\s*__sync\w+\(\);")
NOTHING = "((void)0)"

Edit = tuple[str, int, int, str]  # rule, start, end, replacement


def by_rule(directory: Path = CSRC) -> list[Mutant]:
    """All mutants of all files, in the order of the files."""
    files = sorted(path.name for path in directory.iterdir() if path.suffix in (".cu", ".cuh"))
    return [mutant for file in files if file not in EXEMPT for mutant in of_file(directory, file)]


def of_file(directory: Path, file: str) -> list[Mutant]:
    """The mutants of one file, in the order of its lines."""
    text = read(directory, file)
    code = blanked(text)
    edits = {(start, end): (rule, start, end, new) for rule, start, end, new in _edits(code)}
    mutants: list[Mutant] = []
    seen: Counter[str] = Counter()
    for rule, start, end, new in sorted(edits.values(), key=lambda edit: edit[1]):
        made = Mutant(file, rule, lines_from(text, start), start, end, text[start:end], new)
        mutants.append(replace(made, ordinal=seen[made.name]))
        seen[made.name] += 1
    return mutants


def _edits(code: str) -> Iterator[Edit]:
    yield from _synchronisation(code)
    yield from _atomics(code)
    yield from _conditions(code)
    yield from _ternaries(code)
    yield from _predicates(code)


def _synchronisation(code: str) -> Iterator[Edit]:
    for name, start, opening, end in calls(code, r"__syncthreads\w*|__syncwarp|__threadfence\w*|cp_async_wait"):
        if name in ("__syncthreads_or", "__syncthreads_and", "__syncthreads_count"):
            yield "barrier", start, end, f"({code[opening + 1 : end - 1]})"
        elif name.startswith("__sync"):
            yield "barrier", start, end, NOTHING
        else:
            yield "fence" if name.startswith("__threadfence") else "wait", start, end, NOTHING


def _atomics(code: str) -> Iterator[Edit]:
    """The value as it is, not updated. (An update that is not atomic is one of the planted kinds.)"""
    for _, start, opening, end in calls(code, r"atomic[A-Z]\w+"):
        first, last = arguments(code, opening)[0]
        yield "atomic", start, end, f"(*({code[first:last]}))"


def _conditions(code: str) -> Iterator[Edit]:
    """``if`` with a comparison: what it guards always runs; the early exit never does."""
    for _, _start, opening, end in calls(code, "if"):
        condition = code[opening + 1 : end - 1]
        if not _compares_places(condition) or CONSTANT.fullmatch(condition):
            continue
        guarded = statement_after(code, end)
        if BARRIER.fullmatch(guarded):  # guards no access; the barrier itself is a mutant
            continue
        leaves = EXIT.match(guarded) or LEAVES.search(guarded)
        yield "guard", opening + 1, end - 1, "false" if leaves else "true"


def _ternaries(code: str) -> Iterator[Edit]:
    """``in bounds ? memory : other`` reads memory always."""
    for mark in (found.start() for found in re.finditer(r"\?", code)):
        start = condition_before(code, mark)
        condition, rest = code[start:mark].rstrip(), code[mark + 1 : mark + 120].split(";")[0]
        if _compares_places(condition) and MEMORY.search(rest.split(" : ")[0]):
            yield "guard", start, start + len(condition), "true"


def _predicates(code: str) -> Iterator[Edit]:
    """A named condition, and the predicate of an asynchronous copy."""
    for found in re.finditer(r"\bconst bool \w+ = ([^;,]*);", code):
        if _compares_places(found.group(1)):
            yield "guard", found.start(1), found.end(1), "true"
    for _, _start, opening, _end in calls(code, "cp_async16"):
        first, last = arguments(code, opening)[2]
        predicate = code[first:last]
        if predicate.strip() != "true":
            yield "guard", first + len(predicate) - len(predicate.lstrip()), last, "true"


def _compares_places(condition: str) -> bool:
    return RELATION.search(FLOATING.sub("", condition)) is not None
