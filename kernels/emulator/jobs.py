"""What workers do: run the cases of kernel families on libraries that were compiled beforehand."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from kernels.driver.emulator import EmulatorDevice
from kernels.errors import KernelError
from kernels.kernel import Case
from kernels.loading import Kernels
from kernels.selftest.running import all_cases, run_case


@lru_cache(maxsize=1)
def cases_by_key() -> Mapping[str, Case]:
    """All cases by symbol, entry and name."""
    return {f"{case.symbol}/{case.entry}/{case.name}": case for case in all_cases()}


def prepare() -> None:
    """Compute all cases once, before the forks."""
    cases_by_key()


def run_cases(libraries: Mapping[str, str], keys: Sequence[str], seeds: Sequence[int]) -> str:
    """Run the cases ``keys`` under every schedule; return the first failure as a sentence, "" without one.

    libraries: path of the compiled library by source. A case that launches a source that is not in it fails.
    """
    for seed in seeds:
        os.environ["EMULATOR_SEED"] = str(seed)
        for key in keys:
            device = EmulatorDevice()
            try:
                fraction = run_case(
                    Kernels(device, image=lambda _, source: Path(libraries[source])), cases_by_key()[key]
                )
            except KernelError as error:
                return f"check: {key}, schedule {seed}: {error.message}"
            if not fraction <= 1:
                return f"numbers: {key}, schedule {seed}: {fraction:.3g} times the bound"
    return ""
