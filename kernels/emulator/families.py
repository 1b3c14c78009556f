"""Which cases exercise which source, and which entries they launch: so that little is compiled and run for a check."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kernels.driver.emulator import EmulatorDevice
from kernels.driver.protocol import Device, Image
from kernels.emulator.build import CSRC, Mode, build_library
from kernels.emulator.jobs import cases_by_key
from kernels.loading import Kernels
from kernels.selftest.running import run_case

INCLUDED = re.compile(r'^#include "([^"]+)"', re.MULTILINE)
VARIANT = re.compile(r"_(?:g\d+|d\d+|f16|bf16|f32)(?=_|$)")


@dataclass(frozen=True)
class CaseUse:
    """What one case launches: entries by source."""

    key: str
    symbol: str
    entries: Mapping[str, frozenset[str]]


def case_uses() -> list[CaseUse]:
    """Run every case once, unchanged, and note what it launches."""
    return [CaseUse(key, case.symbol, _entries_of(key)) for key, case in cases_by_key().items()]


def _entries_of(key: str) -> Mapping[str, frozenset[str]]:
    sources: list[str] = []

    def image(device: Device, source: str) -> Image:
        sources.append(source)
        return build_library(source)

    kernels = Kernels(EmulatorDevice(), image=image)
    run_case(kernels, cases_by_key()[key])
    return {source: frozenset(entry for entry in kernels.launched if _stands_in(entry, source)) for source in sources}


def _stands_in(entry: str, source: str) -> bool:
    """Whether the library of ``source`` exports ``entry``: what a source defines by macros its text does not show."""
    from ctypes import CDLL

    return int(CDLL(str(build_library(source))).emulator_parameters(entry.encode(), None, 0)) >= 0


def specimens(uses: Iterable[CaseUse], source: str) -> list[CaseUse]:
    """Choose the cases of ``source`` that need few entries: every case of the first entries of each kind.

    Entries are of one kind when they differ in group size, head size and activation type alone.
    """
    chosen: dict[frozenset[str], frozenset[str]] = {}
    found = []
    for use in uses:
        entries = use.entries.get(source)
        if entries is None:
            continue
        kind = frozenset(VARIANT.sub("", entry) for entry in entries)
        if chosen.setdefault(kind, entries) == entries:
            found.append(use)
    return found


def compiled(
    uses: Iterable[CaseUse], mode: Mode, directory: Path = CSRC, among: Sequence[str] | None = None
) -> dict[str, str]:
    """Compile what the cases launch and nothing else; return the libraries by source. Raises CompileError.

    among: the sources to be taken from ``directory``; the others are csrc's.
    """
    wanted: dict[str, set[str]] = defaultdict(set)
    for use in uses:
        for source, launched in use.entries.items():
            wanted[source] |= launched
    libraries = {}
    for source, entries in wanted.items():
        defines = [only(entries)]
        if among is None or source in among:
            cache = None if directory == CSRC else directory.parent / "libraries"
            library = build_library(source, mode, directory=directory, defines=defines, cache=cache)
        else:
            library = build_library(source, mode, defines=defines)
        libraries[source] = str(library)
    return libraries


def only(entries: Iterable[str]) -> str:
    """The define that leaves a library with these entries."""
    return f'EMULATOR_ONLY="{",".join(sorted(entries))}"'


def dependents(header: str, directory: Path = CSRC) -> list[str]:
    """List the sources that include ``header``, directly or not; a source is its own."""
    includes = {
        path.name: set(INCLUDED.findall(path.read_text(encoding="utf-8")))
        for path in sorted(directory.iterdir())
        if path.suffix in (".cu", ".cuh")
    }

    def reaches(name: str) -> bool:
        return name == header or any(reaches(other) for other in includes.get(name, ()))

    return [name for name in includes if name.endswith(".cu") and reaches(name)]
