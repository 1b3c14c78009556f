"""What counts as an error, and what a run does with cases that fail."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.driver.opening import open_device
from kernels.errors import ArrayError, KernelError, StickyError
from kernels.kernel import Case
from kernels.loading import Kernels
from kernels.selftest import golden
from kernels.selftest.running import error_fraction, run_cases

WANT = np.array([1.0, -2.0, 4.0])
BOUND = np.array([0.5, 0.5, 2.0])


@pytest.fixture()
def kernels() -> Iterator[Kernels]:
    device = open_device("emulator")
    yield Kernels(device)
    device.close()


@given(st.lists(st.floats(-3, 3), min_size=3, max_size=3))
def test_the_fraction_is_the_worst_of_the_elements(errors: list[float]) -> None:
    got = WANT + errors
    expected = max(abs(value - want) / bound for value, want, bound in zip(got, WANT, BOUND, strict=True))
    assert error_fraction(got, WANT, BOUND) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("got", "expected", "fraction"),
    [
        (np.array([1, 2]), np.array([1, 2]), 0.0),
        (np.array([1, 3]), np.array([1, 2]), math.inf),
        (np.array([2**53 + 1]), np.array([2**53]), math.inf),
        (np.array([1.0, np.nan]), np.array([1.0, np.nan]), 0.0),
        (np.array([1.0, np.nan]), np.array([1.0, 2.0]), math.inf),
        (np.array([1.0, 2.0]), np.array([1.0, np.nan]), math.inf),
        (np.array([-np.inf]), np.array([-np.inf]), 0.0),
        (np.array([-np.inf]), np.array([np.inf]), math.inf),
        (np.array([1.0]), np.array([1.0, 1.0]), math.inf),
        (np.zeros((0, 4)), np.zeros((0, 4)), 0.0),
        (np.float32([1.0]), np.array([1.0 + 1e-12]), math.inf),
    ],
)
def test_without_a_bound_only_the_same_values_pass(
    got: npt.NDArray[Any], expected: npt.NDArray[Any], fraction: float
) -> None:
    assert error_fraction(got, expected, None) == fraction


def test_a_nan_does_not_pass_a_bound() -> None:
    assert error_fraction(np.array([np.nan, -2.0, 4.0]), WANT, BOUND) == math.inf


def make_case(name: str, outputs: Mapping[str, npt.NDArray[Any]] | KernelError) -> Case:
    def run(bench: object) -> Mapping[str, npt.NDArray[Any]]:
        if isinstance(outputs, KernelError):
            raise outputs
        return outputs

    return Case("symbol", "entry", name, run, {"y": WANT}, {"y": BOUND})


def test_each_failure_is_told_and_the_others_still_run(kernels: Kernels) -> None:
    results = run_cases(
        kernels,
        [
            make_case("right", {"y": WANT + 0.25}),
            make_case("wrong", {"y": WANT + 1}),
            make_case("refused", ArrayError("x is too small")),
            make_case("incomplete", {}),
            make_case("last", {"y": WANT}),
        ],
        None,
    )
    assert results.failed == {
        "symbol/entry/wrong": "error 2 times its bound",
        "symbol/entry/refused": "x is too small",
        "symbol/entry/incomplete": "error inf times its bound",
    }
    assert results.symbols["symbol"].cases == 5


def test_nothing_runs_after_the_context_is_lost(kernels: Kernels) -> None:
    lost = make_case("lost", StickyError("illegal address"))
    results = run_cases(kernels, [lost, make_case("later", {"y": WANT})], None)
    assert results.failed == {"symbol/entry/lost": "illegal address"}
    assert results.symbols["symbol"].cases == 1


def test_other_answers_than_the_recorded_ones_fail_even_when_the_device_agrees(kernels: Kernels) -> None:
    case = make_case("right", {"y": WANT})
    recorded = {golden.key(case): {"y": golden.summarise(WANT + [0, 0, 1e-6])}}
    assert "not those recorded" in run_cases(kernels, [case], recorded).failed["symbol/entry/right"]
    assert "no golden answer" in run_cases(kernels, [case], {}).failed["symbol/entry/right"]


def test_the_worst_case_is_named(kernels: Kernels) -> None:
    worse, better = make_case("worse", {"y": WANT + 0.4}), make_case("better", {"y": WANT + 0.1})
    result = run_cases(kernels, [better, worse, better], None).symbols["symbol"]
    assert (result.worst, result.worst_case) == (pytest.approx(0.8), "entry: worse")
