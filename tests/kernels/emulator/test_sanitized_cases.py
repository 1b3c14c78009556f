"""The kernels' own cases under AddressSanitizer with UBSan and under ThreadSanitizer: no finding, right numbers."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator

import pytest

from kernels.emulator import CSRC
from kernels.emulator.build import Mode
from kernels.emulator.families import CaseUse, case_uses, compiled, specimens
from kernels.emulator.worker import Worker

pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="the emulator needs g++"),
    pytest.mark.skipif(
        sys.version_info[:2] != (3, 11), reason="sanitizers look at compiled code: they run on one Python only, 3.11"
    ),
]

SOURCES = sorted(path.name for path in CSRC.glob("*.cu"))


@pytest.fixture(scope="module")
def uses() -> list[CaseUse]:
    return case_uses()


@pytest.fixture(scope="module", params=["asan", "tsan"])
def worker(request: pytest.FixtureRequest) -> Iterator[Worker]:
    with Worker(request.param) as made:
        made.prepare("kernels.emulator.jobs:prepare")
        yield made


@pytest.mark.parametrize("source", SOURCES)
def test_cases_of_a_source_have_no_finding(uses: list[CaseUse], worker: Worker, source: str) -> None:
    mode: Mode = worker.mode
    chosen = specimens(uses, source)
    assert chosen, f"no case launches a kernel of {source}"
    outcome = worker.run(
        "kernels.emulator.jobs:run_cases",
        libraries=compiled(chosen, mode),
        keys=[use.key for use in chosen],
        seeds=[1] if mode == "tsan" else [0],
    )
    assert outcome.kind == "done", outcome.report
    assert outcome.value == ""
