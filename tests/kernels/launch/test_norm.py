"""RMSNorm on the emulator: within the derived bound, the same for every number of tokens, refusals."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.arrays import Activation, DeviceArray
from kernels.cases.norm import Shape, cases, make
from kernels.errors import ArrayError
from kernels.kernel import Case
from kernels.launch.norm import KERNELS, rmsnorm_residual
from kernels.loading import Kernels
from kernels.reference import norm as reference
from kernels.selftest.running import run_case
from kernels.workbench import Workbench

CASES = list(cases())
DTYPES: tuple[Activation, ...] = ("f16", "bf16")


@pytest.mark.usefixtures("schedule")
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.entry} {case.name}")
def test_outputs_are_within_the_derived_bound_in_every_schedule(kernels: Kernels, case: Case) -> None:
    assert run_case(kernels, case) <= 1.0
    assert kernels.launched == {case.entry: 1}


def test_the_cases_cover_every_entry() -> None:
    assert {case.entry for case in CASES} == {entry for kernel in KERNELS for entry in kernel.entries}


@pytest.mark.parametrize("width", [8, 16, 896, 1024, 1032, 2560, 4096, 8960])
@pytest.mark.parametrize("dtype", DTYPES)
def test_widths_of_models_and_odd_multiples_of_eight_are_within_the_bound(
    kernels: Kernels, width: int, dtype: Activation
) -> None:
    assert run_case(kernels, make(Shape(3, width, dtype, copies=2), width)) <= 1.0


@settings(max_examples=40)
@given(
    tokens=st.integers(1, 12),
    eighths=st.integers(1, 40),
    dtype=st.sampled_from(DTYPES),
    added=st.booleans(),
    copies=st.integers(1, 2),
    scale=st.sampled_from([1e-6, 0.1, 3.0, 1000.0]),
    seed=st.integers(0, 10**6),
)
def test_any_shape_is_within_the_bound(
    lasting_kernels: Kernels,
    tokens: int,
    eighths: int,
    dtype: Activation,
    added: bool,
    copies: int,
    scale: float,
    seed: int,
) -> None:
    shape = Shape(tokens, 8 * eighths, dtype, added, copies, scale)
    assert run_case(lasting_kernels, make(shape, seed)) <= 1.0


def test_a_value_off_by_two_of_its_last_places_fails_the_bound() -> None:
    total, normed = reference.rmsnorm_residual(np.ones((1, 8)), np.full(8, 1.5), eps=1e-6)
    _, bound = reference.bounds(total, normed, "f16", added=False)
    assert (np.abs(normed * (1 + 2.0**-9) - normed) > bound).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_does_not_depend_on_the_number_of_tokens(bench: Workbench, dtype: Activation) -> None:
    rng = np.random.default_rng(3)
    rows, gamma = rng.standard_normal((8, 1544)), bench.upload(rng.standard_normal(1544), "f32")
    together = normed(bench, bench.upload(rows, "f32"), gamma, dtype)
    for row in range(8):
        alone = normed(bench, bench.upload(rows[row : row + 1], "f32"), gamma, dtype)
        assert np.array_equal(alone[0], together[row])


def normed(bench: Workbench, residual: DeviceArray, gamma: DeviceArray, dtype: Activation) -> np.ndarray:
    y = bench.empty(residual.shape, dtype)
    rmsnorm_residual(bench.kernels, bench.stream, residual, gamma, y, eps=1e-5)
    return bench.download(y)


def test_nan_and_a_row_of_zeros_stay_in_their_rows(bench: Workbench) -> None:
    rows = np.ones((3, 64))
    rows[0, 9], rows[1] = np.nan, 0.0
    y = normed(bench, bench.upload(rows, "f32"), bench.upload(np.ones(64), "f32"), "f16")
    assert np.isnan(y[0]).all()
    assert not y[1].any()
    assert np.allclose(y[2], 1.0, atol=1e-3)


def test_what_the_kernel_cannot_take_is_refused(bench: Workbench) -> None:
    good = {
        "residual": bench.upload(np.ones((2, 16)), "f32"),
        "gamma": bench.upload(np.ones(16), "f32"),
        "y": bench.empty((2, 16), "f16"),
        "eps": 1e-6,
    }
    odd = {"residual": bench.upload(np.ones((2, 12)), "f32"), "gamma": bench.upload(np.ones(12), "f32")}
    wrong: list[tuple[dict[str, object], str]] = [
        ({"residual": bench.upload(np.ones((2, 16)), "f16")}, "residual is f16"),
        ({"residual": replace(good["residual"], shape=(0, 16))}, "residual has the shape"),
        ({**odd, "y": bench.empty((2, 12), "f16")}, "rows of 12"),
        ({"residual": replace(good["residual"], shape=(1, 32776))}, "rows of 32776"),
        ({"gamma": bench.upload(np.ones(8), "f32")}, "gamma has the shape"),
        ({"gamma": replace(good["gamma"], ptr=good["gamma"].ptr + 4)}, "gamma lies at"),
        ({"y": bench.empty((2, 16), "f32")}, "y is f32"),
        ({"copies": 2}, "y has the shape"),
        ({"copies": 3}, "copies is 3"),
        ({"delta": bench.upload(np.ones((2, 16)), "bf16")}, "delta is bf16"),
        ({"delta": bench.upload(np.ones((1, 16)), "f16")}, "delta has the shape"),
        ({"y": replace(good["y"], ptr=0)}, "y is a null pointer"),
        ({"eps": -1.0}, "eps is -1.0"),
    ]
    for change, message in wrong:
        with pytest.raises(ArrayError, match=message):
            rmsnorm_residual(bench.kernels, bench.stream, **{**good, **change})
    assert not bench.kernels.launched
