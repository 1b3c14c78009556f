"""Trying a mutant: it is compiled and its family's cases run, mode after mode, until one of them notices."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from kernels.emulator.build import CSRC, Mode
from kernels.emulator.families import CaseUse, case_uses, compiled, dependents, specimens
from kernels.emulator.mutants.source import Mutant, read
from kernels.emulator.worker import Outcome, Worker
from kernels.errors import CompileError

MODES: Sequence[Mode] = ("fast", "asan", "tsan")
SEEDS = {"fast": [0, 1, 2, 3], "asan": [0], "tsan": [1]}
TIMEOUT_S = 60


@dataclass(frozen=True)
class Verdict:
    """What caught a mutant. ``mode``: fast, asan, tsan, compiler, or "" when nothing did.

    check: numbers, check, address, undefined, race, crash or hang; detail: the first line of what was reported.
    """

    name: str
    rule: str
    line: int
    mode: str
    check: str
    detail: str

    def row(self) -> dict[str, object]:
        """For a report."""
        return asdict(self)


class Trials:
    """Workers of every mode and the cases of every kernel, kept from mutant to mutant. A context manager."""

    def __init__(self) -> None:
        self._made = tempfile.TemporaryDirectory(prefix="mutants-")
        self._directory = Path(self._made.name) / "csrc"  # as it is now, whatever is edited meanwhile
        shutil.copytree(CSRC, self._directory)
        self._uses = case_uses()
        self._workers = {mode: Worker(mode) for mode in MODES}
        for worker in self._workers.values():
            worker.prepare("kernels.emulator.jobs:prepare")

    def __enter__(self) -> Trials:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._workers.values():
            worker.close()
        self._made.cleanup()

    def judge(self, mutant: Mutant, *, thorough: bool) -> Verdict:
        """Say what catches ``mutant`` with the first cases of its family, or (``thorough``) with all of them."""
        with tempfile.TemporaryDirectory(prefix="mutant-") as made:
            folder = Path(made) / "csrc"
            shutil.copytree(self._directory, folder)
            mutated = folder / mutant.file
            mutated.write_text(mutant.apply(read(self._directory, mutant.file)), encoding="utf-8")
            sources = dependents(mutant.file, self._directory)
            for mode in MODES:
                for source in mutant.sources or sources:
                    verdict = self._try(mutant, mode, self._cases(source, thorough), sources, folder)
                    if verdict is not None:
                        return verdict
        return Verdict(mutant.name, mutant.rule, mutant.line, "", "", "nothing noticed it")

    def _cases(self, source: str, thorough: bool) -> list[CaseUse]:
        return [use for use in self._uses if source in use.entries] if thorough else specimens(self._uses, source)

    def _try(
        self, mutant: Mutant, mode: Mode, uses: Sequence[CaseUse], sources: Sequence[str], folder: Path
    ) -> Verdict | None:
        def verdict(mode: str, check: str, detail: str) -> Verdict:
            return Verdict(mutant.name, mutant.rule, mutant.line, mode, check, " ".join(detail.split())[:160])

        try:
            libraries = compiled(uses, mode, folder, among=sources)
        except CompileError as error:
            return verdict("compiler", "refused", error.message)
        outcome = self._workers[mode].run(
            "kernels.emulator.jobs:run_cases",
            timeout_s=TIMEOUT_S,
            libraries=libraries,
            keys=[use.key for use in uses],
            seeds=SEEDS[mode],
        )
        if outcome.kind == "done" and not outcome.value:
            return None
        check, detail = _told(outcome)
        return verdict(mode, check, detail)


def _told(outcome: Outcome) -> tuple[str, str]:
    if outcome.kind == "done":
        check, _, detail = str(outcome.value).partition(": ")
        return check, detail
    marks = ("SUMMARY:", "runtime error:", "Error")
    lines = outcome.report.splitlines()
    return outcome.kind, next((line for mark in marks for line in lines if mark in line), outcome.report[-160:])
