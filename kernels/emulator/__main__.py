"""Compile the kernels for this CPU, or plant bugs in them and see which check notices each.

python -m kernels.emulator                          compile every source of csrc (they are cached)
python -m kernels.emulator --mode asan gemv.cu      one, under AddressSanitizer and UBSan
python -m kernels.emulator --list                   the mutants, without trying them
python -m kernels.emulator --mutants                try all of them and write the report (minutes)
python -m kernels.emulator --mutants --file gemv    those in files whose name begins so
python -m kernels.emulator --mutants --count 10 --seed 7    ten of them

Exit status: 0 all caught but those listed as equivalent; 4 one was not, or something is missing.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from kernels.emulator.build import CSRC, MODE_FLAGS, build_library
from kernels.emulator.mutants.planted import planted
from kernels.emulator.mutants.report import REPORT, equivalents, table, write_report
from kernels.emulator.mutants.rules import by_rule
from kernels.emulator.mutants.source import Mutant
from kernels.emulator.mutants.trial import Trials, Verdict
from kernels.errors import KernelError

EXIT_OK, EXIT_FAILED = 0, 4


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parsed = argparse.ArgumentParser(
        prog="python -m kernels.emulator", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parsed.add_argument("sources", nargs="*", help="files of csrc to compile (default: all)")
    parsed.add_argument("--mode", choices=sorted(MODE_FLAGS), default="fast", help="fast, or under which sanitizer")
    parsed.add_argument("--mutants", action="store_true", help="try mutants")
    parsed.add_argument("--list", action="store_true", help="name the mutants only")
    parsed.add_argument("--file", default="", help="mutants in files whose name begins so")
    parsed.add_argument("--count", type=int, default=0, help="try so many, drawn by --seed (default: all)")
    parsed.add_argument("--seed", default="0", help="any text")
    parsed.add_argument("--json", type=Path, help=f"where the report goes; all mutants: {REPORT.name} beside this file")
    return parsed


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the command line asks."""
    options = parser().parse_args(argv)
    try:
        if options.list or options.mutants:
            mutants = chosen(options.file, options.count, options.seed)
            if not mutants:
                parser().error(f"--file {options.file}: no mutant is in a file whose name begins so")
            if options.list:
                _say("\n".join(f"{mutant.name} -> {mutant.replacement}" for mutant in mutants))
                return EXIT_OK
            complete = not (options.file or options.count)
            return try_all(mutants, options.json or (REPORT if complete else None))
        for source in options.sources or sorted(path.name for path in CSRC.glob("*.cu")):
            start = time.perf_counter()
            library = build_library(source, options.mode)
            _say(f"{source}: {library} ({time.perf_counter() - start:.1f} s)")
    except KernelError as problem:
        _say(f"error: {problem.message}" + (f"\nhint: {problem.hint}" if problem.hint else ""), error=True)
        return EXIT_FAILED
    return EXIT_OK


def chosen(prefix: str = "", count: int = 0, seed: str = "0") -> list[Mutant]:
    """The mutants of files whose name begins with ``prefix``; ``count`` of them, drawn by ``seed``, unless it is 0."""
    found = [mutant for mutant in [*by_rule(), *planted()] if mutant.file.startswith(prefix)]
    if count <= 0 or count >= len(found):
        return found
    return random.Random(seed).sample(found, count)


def try_all(mutants: Sequence[Mutant], report: Path | None) -> int:
    """Try the mutants, say what catches each, write ``report`` (anew after each).

    Those that the first cases of their family leave alone are tried again with all of them, at the end.
    """
    verdicts: dict[str, Verdict] = {}
    known = equivalents()
    with Trials() as trials:
        for thorough in (False, True):
            waiting = [mutant for mutant in mutants if not thorough or not verdicts[mutant.name].mode]
            for number, mutant in enumerate(waiting, 1):
                verdict = verdicts[mutant.name] = trials.judge(mutant, thorough=thorough)
                caught = f"{verdict.mode} {verdict.check}".strip() or ("NOT CAUGHT" if thorough else "not yet caught")
                _say(f"{number}/{len(waiting)} {mutant.name}: {caught}")
                if report is not None:
                    write_report(report, list(verdicts.values()))
    _say(table(list(verdicts.values())))
    missed = [verdict.name for verdict in verdicts.values() if not verdict.mode and verdict.name not in known]
    for name in missed:
        _say(f"not caught: {name}")
    return EXIT_FAILED if missed else EXIT_OK


def _say(text: str, error: bool = False) -> None:
    stream = sys.stderr if error else sys.stdout
    stream.write(f"{text}\n")
    stream.flush()


if __name__ == "__main__":
    sys.exit(main())
