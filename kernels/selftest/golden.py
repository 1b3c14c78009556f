"""What the committed file says of every case's answers, so that a board is known to replay the same inputs.

An answer follows from its inputs, so a summary of the answer stands for both. Floating answers are summarised by sums
that another numpy may round differently in the last digits: they are compared with a tolerance, integers by hash.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kernels.errors import ImageError
from kernels.kernel import Case
from kernels.nvrtc.store import write_atomically

GOLDEN = Path(__file__).with_name("golden.json")
TOLERANCE = 1e-9  # of the sum of magnitudes; float64 sums in another order differ by 1e-13
Summary = dict[str, Any]


def key(case: Case) -> str:
    """What a case is called in the file: symbol, entry, name."""
    return f"{case.symbol}/{case.entry}/{case.name}"


def summarise(values: npt.NDArray[Any]) -> Summary:
    """Shape, and the SHA-256 of integers or, of floating values, three sums: all, magnitudes, and by position."""
    if values.dtype.kind in "biu":
        wide = np.ascontiguousarray(values, np.int64 if values.dtype.kind != "u" else np.uint64)
        return {"shape": list(values.shape), "sha256": hashlib.sha256(wide.tobytes()).hexdigest()[:16]}
    flat = np.asarray(values, np.float64).ravel()
    finite = np.where(np.isfinite(flat), flat, 0.0)
    place = np.cos(np.arange(flat.size, dtype=np.float64))
    sums = [float(np.sum(part)) for part in (finite, np.abs(finite), finite * place)]
    return {
        "shape": list(values.shape),
        "sums": [float(f"{value:.12g}") for value in sums],
        "special": [int(np.sum(test(flat))) for test in (np.isnan, np.isposinf, np.isneginf)],
    }


def same(one: Summary, other: Summary) -> bool:
    """Whether two summaries are of the same answer."""
    if "sums" not in one or "sums" not in other:
        return one == other
    if (one["shape"], one["special"]) != (other["shape"], other["special"]):
        return False
    limit = TOLERANCE * max(one["sums"][1], other["sums"][1])
    return all(abs(a - b) <= limit for a, b in zip(one["sums"], other["sums"], strict=True))


def read_golden() -> dict[str, dict[str, Summary]]:
    """The committed summaries by case and output. ImageError when the file is missing or unreadable."""
    try:
        value: dict[str, dict[str, Summary]] = json.loads(GOLDEN.read_text(encoding="utf-8"))
        return {name: dict(outputs) for name, outputs in value.items()}
    except (OSError, ValueError, TypeError, AttributeError) as problem:
        raise ImageError(f"{GOLDEN} cannot be read: {problem!r}", hint="install jetson-vlm again") from problem


def write_golden(cases: Iterable[Case]) -> int:
    """Write the file anew, a case per line, and return how many there are."""
    lines = {
        key(case): json.dumps({name: summarise(values) for name, values in sorted(case.expected.items())})
        for case in cases
    }
    rows = ",\n".join(f" {json.dumps(name)}: {lines[name]}" for name in sorted(lines))
    write_atomically(GOLDEN, f"{{\n{rows}\n}}\n".encode())
    return len(lines)


def differences(case: Case, golden: Mapping[str, Mapping[str, Summary]]) -> str | None:
    """Why the answers of a case are not the committed ones; None when they are."""
    listed = golden.get(key(case))
    if listed is None:
        return "no golden answer was recorded for it"
    if set(listed) != set(case.expected):
        return f"outputs {sorted(case.expected)}, recorded were {sorted(listed)}"
    other = [name for name, values in case.expected.items() if not same(summarise(values), listed[name])]
    return f"{', '.join(other)}: inputs or answers are not those recorded" if other else None
