"""One kernel family as the registry knows it, and what launches and checks it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Kernel:
    """``symbol`` is the name of the family; ``entries`` are the compiled functions, one per group size, dtype, ….

    source: file in csrc. launcher: checks its arguments, picks the entry and launches it. reference: the same in
    numpy float64, on exactly dequantised weights.
    """

    symbol: str
    source: str
    entries: tuple[str, ...]
    launcher: Callable[..., Any]
    reference: Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Case:
    """One launch with known inputs and known answers, for the selftest and the tests.

    run(bench) uploads the inputs, launches ``symbol`` through its launcher and returns the outputs as host arrays
    (bf16 widened to f32). expected: float64 (or integers, compared exactly) per output; bound: the largest allowed
    absolute difference per element, derived where the case is made.
    """

    symbol: str
    entry: str
    name: str
    run: Callable[[Any], Mapping[str, npt.NDArray[Any]]]
    expected: Mapping[str, npt.NDArray[Any]]
    bound: Mapping[str, F64] = field(default_factory=dict)
