"""The LM head on the emulator: logits, and what a greedy sampler needs of each tile of 16."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from kernels.arrays import Activation
from kernels.cases.head import cases
from kernels.cases.products import Product, product
from kernels.kernel import Case
from kernels.launch.head import KERNELS, head_argmax, head_logits
from kernels.packing import IntWeight, split_int8
from kernels.packing.t16 import GROUP_SIZES
from kernels.reference import head as reference
from kernels.state import HEAD_PARTIAL
from kernels.workbench import Workbench

CASES = list(cases())
DTYPES: tuple[Activation, ...] = ("f16", "bf16")


def logits_of(bench: Workbench, of: Product) -> np.ndarray:
    x, w = of.upload(bench)
    logits = bench.empty((of.x.shape[0], w.n), "f32")
    head_logits(bench.kernels, bench.stream, x, w, logits)
    return bench.download(logits)


def partials_of(bench: Workbench, of: Product) -> np.ndarray:
    x, w = of.upload(bench)
    partials = bench.empty((w.tiles, of.x.shape[0], HEAD_PARTIAL.itemsize), "u8")
    head_argmax(bench.kernels, bench.stream, x, w, partials)
    return bench.download(partials).view(HEAD_PARTIAL)[..., 0]


def rows_of(first_column: list[int], scale: float = 1.0) -> IntWeight:
    """A weight [V, 64] whose rows are q - z in the first column and 0 elsewhere."""
    q = np.full((len(first_column), 64), 8, np.uint8)
    q[:, 0] = np.array(first_column) + 8
    groups = (len(first_column), 1)
    return IntWeight(q, np.full(groups, 8, np.uint8), np.full(groups, scale, np.float16), 64)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.entry)
def test_outputs_are_within_the_derived_bound(bench: Workbench, case: Case) -> None:
    outputs = case.run(bench)
    assert outputs.keys() == case.expected.keys()
    for name, expected in case.expected.items():
        if name in case.bound:
            assert (np.abs(outputs[name].astype(np.float64) - expected) <= case.bound[name]).all(), name
        else:
            assert np.array_equal(outputs[name], expected), name
    assert bench.kernels.launched == {case.entry: 1}


def test_the_cases_cover_every_entry() -> None:
    assert {case.entry for case in CASES} == {entry for kernel in KERNELS for entry in kernel.entries}


@pytest.mark.usefixtures("schedule")
def test_no_schedule_changes_a_bit(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    for case in CASES[::5]:
        shuffled = case.run(bench)
        monkeypatch.setenv("EMULATOR_SEED", "0")
        for name, values in case.run(bench).items():
            assert np.array_equal(shuffled[name], values), (case.entry, name)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("group", GROUP_SIZES)
def test_partials_are_those_of_the_logits_bit_for_bit_for_every_m(
    bench: Workbench, group: int, dtype: Activation
) -> None:
    of = product(50 + group, 8, 100, 640, group, dtype)
    single = [replace(of, x=of.x[m : m + 1]) for m in range(8)]
    logits = np.concatenate([logits_of(bench, one) for one in single])
    partials = np.concatenate([partials_of(bench, one) for one in single], axis=1)
    for tokens in range(2, 9):
        some = replace(of, x=of.x[:tokens])
        assert np.array_equal(logits_of(bench, some), logits[:tokens])
        assert np.array_equal(partials_of(bench, some), partials[:, :tokens])
    for tile in range(7):
        ids = slice(16 * tile, min(16 * tile + 16, 100))
        assert np.array_equal(partials["max"][tile], logits[:, ids].max(axis=1))
        assert np.array_equal(partials["index"][tile], 16 * tile + logits[:, ids].argmax(axis=1))


def test_the_lowest_id_wins_ties(bench: Workbench) -> None:
    columns = [1] * 40
    for best in (5, 9, 15, 30, 31):
        columns[best] = 3
    found = partials_of(bench, Product(np.eye(2, 64), rows_of(columns), "f16"))
    assert found["index"].tolist() == [[5, 0], [30, 16], [32, 32]]
    assert found["max"].tolist() == [[3, 0], [3, 0], [1, 0]]
    e = np.exp(-2.0)
    np.testing.assert_allclose(found["sum"], [[3 + 13 * e, 16], [2 + 14 * e, 16], [8, 8]], rtol=1e-6)


@pytest.mark.parametrize("vocabulary", [1, 15, 16, 17, 45])
def test_rows_of_the_padding_neither_win_nor_count(bench: Workbench, vocabulary: int) -> None:
    """All logits are negative: a padded row's 0 would win."""
    found = partials_of(bench, Product(np.eye(1, 64), rows_of([-3] * vocabulary), "f16"))
    starts = list(range(0, vocabulary, 16))
    assert found["max"].ravel().tolist() == [-3.0] * len(starts)
    assert found["index"].ravel().tolist() == starts
    assert found["sum"].ravel().tolist() == [min(16, vocabulary - start) for start in starts]


def test_logits_without_a_probability_are_marked(bench: Workbench) -> None:
    """inf times 1, -1 and 0: +inf and NaN mark their tile, a tile of -inf alone has its first id and no sum."""
    columns = [-1] * 64
    columns[20], columns[47] = 1, 0
    x = np.zeros((3, 64))
    x[1, 0] = np.inf
    found = partials_of(bench, Product(x, rows_of(columns), "bf16"))
    assert found["index"][:, 1].tolist() == [0, -1, -1, 48]
    assert found["max"][:, 1].tolist() == [-np.inf, 0.0, 0.0, -np.inf]
    assert found["sum"][:, 1].tolist() == [0.0] * 4
    for token in (0, 2):
        assert found["index"][:, token].tolist() == [0, 16, 32, 48]
        assert found["sum"][:, token].tolist() == [16.0] * 4
    x[1, 0] = np.nan
    assert partials_of(bench, Product(x, rows_of(columns), "bf16"))["index"][:, 1].tolist() == [-1] * 4


def test_a_bad_logit_in_the_padding_marks_nothing(bench: Workbench) -> None:
    """Padded rows multiply inf by 0, which is NaN, beside the one row that counts."""
    x = np.zeros((1, 64))
    x[0, 0] = np.inf
    found = partials_of(bench, Product(x, rows_of([-1]), "f16"))
    assert (found["index"].item(), found["max"].item()) == (0, -np.inf)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("group", GROUP_SIZES)
def test_unit_vectors_read_back_every_weight(bench: Workbench, group: int, dtype: Activation) -> None:
    of = product(60, 8, 23, 2 * group, group, dtype)
    for start in range(0, 2 * group, 8):
        units = replace(of, x=np.eye(2 * group)[start : start + 8])
        assert np.array_equal(logits_of(bench, units), of.dequantized()[:, start : start + 8].T)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("group", GROUP_SIZES)
def test_a_scale_moved_by_two_ulps_leaves_the_bound(bench: Workbench, group: int, dtype: Activation) -> None:
    of = product(61, 8, 16, group, group, dtype)
    w = of.dequantized()
    expected, bound = reference.head_logits(of.x, w), reference.logits_bound(of.x, w, group)
    assert (np.abs(logits_of(bench, of) - expected) <= bound).all()
    of.weight.scales.view(np.uint16)[:] += 2
    assert (np.abs(logits_of(bench, of) - expected) > bound).any(axis=0).all()


def test_an_eight_bit_head_is_a_four_bit_one_over_the_row_twice(bench: Workbench) -> None:
    rng = np.random.default_rng(2)
    weight = IntWeight(
        rng.integers(0, 256, (40, 256), dtype=np.uint8),
        rng.integers(0, 256, (40, 2), dtype=np.uint8),
        rng.uniform(1e-4, 1e-2, (40, 2)).astype(np.float16),
        128,
        bits=8,
    )
    x = np.float16(rng.normal(0, 1, (3, 256))).astype(np.float64)
    of = Product(np.tile(x, 2), split_int8(weight), "f16")
    scales = np.repeat(weight.scales.astype(np.float64), 128, axis=1)
    exact = (weight.q.astype(np.float64) - np.repeat(weight.zeros, 128, axis=1)) * scales
    bound = reference.logits_bound(of.x, of.dequantized(), 128)
    assert (np.abs(logits_of(bench, of) - x @ exact.T) <= bound).all()
