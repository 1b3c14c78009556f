"""Mutants by kind: the places of `kinds.KINDS`, found in the sources as they are now."""

from __future__ import annotations

from pathlib import Path

from kernels.emulator.build import CSRC
from kernels.emulator.mutants.kinds import KINDS, Place
from kernels.emulator.mutants.source import Mutant, lines_from, read
from kernels.errors import KernelError


def planted(directory: Path = CSRC) -> list[Mutant]:
    """One mutant per place. KernelError when a source has changed so that a place is not there exactly once."""
    return [_mutant(directory, kind, place) for kind, places in KINDS.items() for place in places]


def _mutant(directory: Path, kind: str, place: Place) -> Mutant:
    text = read(directory, place.file)
    if text.count(place.old) != 1:
        raise KernelError(
            f"{place.file} has {text.count(place.old)} places for a mutant ({kind}): {place.old!r}",
            hint="name the place anew in kernels/emulator/mutants/kinds.py",
        )
    start = text.index(place.old)
    end = start + len(place.old)
    return Mutant(
        place.file, f"planted: {kind}", lines_from(text, start), start, end, place.old, place.new, 0, place.sources
    )
