"""Running cases on a device and measuring their errors against their bounds."""

from __future__ import annotations

import importlib
import math
import pkgutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

import kernels.cases
from kernels.errors import KernelError, StickyError
from kernels.kernel import Case
from kernels.loading import Kernels
from kernels.selftest import conformance, golden
from kernels.workbench import Workbench


@dataclass
class SymbolResult:
    """``worst``: the largest error as a fraction of its bound; at most 1 where nothing failed."""

    cases: int = 0
    worst: float = 0.0
    worst_case: str = ""
    seconds: float = 0.0


@dataclass
class Results:
    """``failed``: one sentence per case that did, by its key."""

    symbols: dict[str, SymbolResult] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def all_cases() -> Iterator[Case]:
    """The cases of the wrappers of PTX, then those of every module of kernels.cases."""
    yield from conformance.cases()
    for module in sorted(pkgutil.iter_modules(kernels.cases.__path__), key=lambda found: found.name):
        loaded = importlib.import_module(f"kernels.cases.{module.name}")
        if hasattr(loaded, "cases"):
            yield from loaded.cases()


def error_fraction(got: npt.NDArray[Any], expected: npt.NDArray[Any], bound: npt.NDArray[Any] | None) -> float:
    """The largest |got - expected| / bound; without a bound, or where it is zero, only equality gives 0.

    NaN and infinities must stand exactly where they are expected. Another shape gives infinity.
    """
    if got.shape != expected.shape:
        return math.inf
    if got.size == 0:
        return 0.0
    if got.dtype.kind in "biu" and expected.dtype.kind in "biu" and bound is None:
        return 0.0 if np.array_equal(got, expected) else math.inf
    have, want = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    limit = np.zeros_like(want) if bound is None else np.broadcast_to(np.asarray(bound, np.float64), want.shape)
    equal = (have == want) | (np.isnan(have) & np.isnan(want))
    with np.errstate(invalid="ignore", divide="ignore"):
        fraction = np.where(equal, 0.0, np.abs(have - want) / limit)
    return float(np.max(np.where(np.isnan(fraction), math.inf, fraction)))


def run_case(kernels: Kernels, case: Case) -> float:
    """Launch a case and return its error fraction. Raises KernelError."""
    with Workbench(kernels) as bench:
        outputs = case.run(bench)
    if set(outputs) != set(case.expected):
        return math.inf
    return max(error_fraction(outputs[name], case.expected[name], case.bound.get(name)) for name in case.expected)


def run_cases(
    kernels: Kernels,
    cases: Iterable[Case],
    answers: Mapping[str, Mapping[str, golden.Summary]] | None,
    done: Callable[[Case], None] = lambda case: None,
) -> Results:
    """Run ``cases`` in order. ``answers``: the committed ones, or None to leave that comparison out.

    A refused case fails and the next one runs; after a lost context (StickyError) none does.
    """
    results = Results()
    for case in cases:
        result = results.symbols.setdefault(case.symbol, SymbolResult())
        start = time.perf_counter()
        problem = golden.differences(case, answers) if answers is not None else None
        lost = False
        try:
            fraction = run_case(kernels, case)
        except KernelError as error:
            fraction, problem = math.inf, error.message
            lost = isinstance(error, StickyError)
        if fraction > 1 and problem is None:
            problem = f"error {fraction:.3g} times its bound"
        if problem is not None:
            results.failed[golden.key(case)] = problem
        if fraction >= result.worst:
            result.worst, result.worst_case = fraction, f"{case.entry}: {case.name}"
        result.cases += 1
        result.seconds += time.perf_counter() - start
        done(case)
        if lost:
            break
    return results
