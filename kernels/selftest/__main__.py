"""Replay known inputs through every kernel and compare with float64 answers; prints one JSON line.

python -m kernels.selftest --device cuda

Exit status: 0 all within their bounds; 4 not, or no device.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from kernels.driver.opening import open_device
from kernels.driver.protocol import Device
from kernels.errors import KernelError, NoDeviceError
from kernels.images import installed_images
from kernels.kernel import Case
from kernels.loading import Kernels
from kernels.nvrtc.sources import read_source, source_files
from kernels.registry import KERNELS
from kernels.selftest.conformance import SYMBOL as WRAPPERS
from kernels.selftest.golden import read_golden, write_golden
from kernels.selftest.running import Results, all_cases, run_cases

EXIT_OK, EXIT_FAILED = 0, 4
FAMILIES = (*sorted(KERNELS), WRAPPERS)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parsed = argparse.ArgumentParser(prog="python -m kernels.selftest", description="Check the kernels on this device.")
    parsed.add_argument(
        "--device", choices=("auto", "cuda", "emulator"), default="auto", help="auto: a GPU, else the emulator"
    )
    parsed.add_argument(
        "--symbol", nargs="+", choices=FAMILIES, default=[], metavar="NAME", help="only these families (default: all)"
    )
    parsed.add_argument("--json", action="store_true", help="no progress on stderr")
    parsed.add_argument("--write-golden", action="store_true", help="record the answers of all cases; runs nothing")
    return parsed


def main(argv: Sequence[str] | None = None) -> int:
    """Open the device, run, print."""
    options = parser().parse_args(argv)
    try:
        if options.write_golden:
            _say(f"{write_golden(all_cases())} cases recorded")
            return EXIT_OK
        device = choose_device(options.device)
        try:
            report = selftest(device, options.symbol, quiet=options.json)
        finally:
            device.close()
    except KernelError as problem:
        _say(f"error: {problem.message}" + (f"\nhint: {problem.hint}" if problem.hint else ""), error=True)
        return EXIT_FAILED
    _say(json.dumps(report))
    return EXIT_OK if report["ok"] else EXIT_FAILED


def choose_device(name: str) -> Device:
    """Open ``cuda``, ``emulator``, or for ``auto`` the first of the two that is here. Raises NoDeviceError."""
    if name == "emulator":
        return open_device("emulator")
    try:
        return open_device("auto")
    except NoDeviceError:
        if name == "cuda":
            raise
        _say("no GPU: the emulator runs the kernels on the CPU", error=True)
        return open_device("emulator")


def selftest(device: Device, symbols: Sequence[str] = (), *, quiet: bool = True) -> dict[str, Any]:
    """Run the cases of ``symbols`` (all when empty) on ``device`` and return the report. Raises KernelError."""
    start = time.perf_counter()
    kernels = Kernels(device)
    cases = [case for case in all_cases() if not symbols or case.symbol in symbols]
    progress = _Progress(cases, quiet)
    try:
        results = run_cases(kernels, cases, read_golden(), progress.done)
    finally:
        kernels.close()
    if not symbols:
        for entry in _not_launched(kernels):
            results.failed[entry] = "no case launches it"
    return {**facts(device), **summary(results, kernels), "seconds": round(time.perf_counter() - start, 2)}


def facts(device: Device) -> dict[str, Any]:
    """What the run was made on and with."""
    cuda = device.backend != "emulator"
    return {
        "device": device.name,
        "backend": device.backend,
        "compute_capability": "{}.{}".format(*device.compute_capability),
        "multiprocessors": device.multiprocessors,
        "integrated": device.integrated,
        "driver": f"{device.driver_version // 1000}.{device.driver_version % 1000 // 10}" if cuda else None,
        "images": {name: _usable(name) for name in source_files()} if cuda else None,
        "sources": {name: read_source(name).digest[:16] for name in source_files()},
        "machine": platform.machine(),
        "python": platform.python_version(),
        "numpy": np.__version__,
    }


def _not_launched(kernels: Kernels) -> list[str]:
    """Entries of the registry that no case has launched."""
    return sorted({entry for kernel in KERNELS.values() for entry in kernel.entries} - set(kernels.launched))


def _usable(source: str) -> list[str]:
    """The targets for which this installation has an image of a source."""
    return [arch for arch, reason in installed_images(source).items() if reason is None]


def summary(results: Results, kernels: Kernels) -> dict[str, Any]:
    """The figures of a run: errors are fractions of their bounds."""
    return {
        "ok": not results.failed,
        "cases": sum(result.cases for result in results.symbols.values()),
        "launched": len(kernels.launched),
        "not_launched": _not_launched(kernels),
        "symbols": {
            name: {
                "cases": result.cases,
                "worst": round(result.worst, 4) if math.isfinite(result.worst) else None,
                "case": result.worst_case,
                "seconds": round(result.seconds, 2),
            }
            for name, result in sorted(results.symbols.items())
        },
        "failed": results.failed,
    }


class _Progress:
    """A line on stderr after the last case of each symbol."""

    def __init__(self, cases: Sequence[Case], quiet: bool) -> None:
        self._left = {case.symbol: sum(other.symbol == case.symbol for other in cases) for case in cases}
        self._quiet = quiet

    def done(self, case: Case) -> None:
        self._left[case.symbol] -= 1
        if self._left[case.symbol] == 0 and not self._quiet:
            left = sum(1 for count in self._left.values() if count)
            _say(f"{case.symbol}: done, {left} families to go", error=True)


def _say(line: str, *, error: bool = False) -> None:
    stream = sys.stderr if error else sys.stdout
    stream.write(line + "\n")
    stream.flush()


if __name__ == "__main__":
    raise SystemExit(main())
