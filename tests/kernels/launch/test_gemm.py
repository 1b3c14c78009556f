"""The GEMM family on the emulator: cases within their bounds, one result for every M and tile, exact weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from kernels.arrays import Activation, DeviceArray, from_host_dtype
from kernels.cases.cache import decode_state, empty_cache, rounded, status_of
from kernels.cases.gemm import GEMM, cases
from kernels.cases.products import Product, product
from kernels.cases.qkv import rope_table
from kernels.errors import ArrayError
from kernels.kernel import Case
from kernels.launch.gemm import KERNELS, TileTokens, gemm, gemm_64, gemm_qkv_rope_kv, gemm_swiglu, tile_tokens
from kernels.launch.weights import T16Weight, upload_t16
from kernels.packing import IntWeight, gate_up_order, pack, qkv_order
from kernels.packing.t16 import GROUP_SIZES
from kernels.reference import gemm as reference
from kernels.reference import gemv as single
from kernels.state import STATUS_FULL
from kernels.workbench import Workbench
from tests.kernels.launch.cancelling import cancelling

CASES = list(cases())
DTYPES: tuple[Activation, ...] = ("f16", "bf16")
TILES: tuple[TileTokens, ...] = (64, 128)
UNWRITTEN = 0xFFFF


def output_of(bench: Workbench, of: Product, tile: TileTokens = 64, tokens: slice = slice(None)) -> np.ndarray:
    """The product of some of the tokens, f32."""
    some = replace(of, x=of.x[tokens])
    x, w = some.upload(bench)
    y = bench.empty((some.x.shape[0], w.n), of.dtype)
    GEMM[tile](bench.kernels, bench.stream, x, w, y)
    return bench.download(y).astype(np.float32)


def added_to_zero(bench: Workbench, of: Product, tile: TileTokens = 64) -> np.ndarray:
    """The f32 sums themselves: a residual that was zero."""
    x, w = of.upload(bench)
    residual = bench.upload(np.zeros((of.x.shape[0], w.n)), "f32")
    GEMM[tile](bench.kernels, bench.stream, x, w, None, residual=residual)
    return bench.download(residual)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.entry)
def test_outputs_are_within_the_derived_bound(bench: Workbench, case: Case) -> None:
    outputs = case.run(bench)
    assert outputs.keys() == case.expected.keys()
    for name, expected in case.expected.items():
        off = np.abs(outputs[name].astype(np.float64) - expected)
        assert (off <= case.bound[name]).all(), (name, float((off / case.bound[name]).max()))
    assert set(bench.kernels.launched) == {case.entry}


def test_the_cases_cover_every_entry() -> None:
    assert {case.entry for case in CASES} == {entry for kernel in KERNELS for entry in kernel.entries}


@pytest.mark.usefixtures("schedule")
def test_no_schedule_changes_a_bit(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    for case in CASES[::5]:  # of each symbol, tile, group size and dtype some
        shuffled = case.run(bench)
        monkeypatch.setenv("EMULATOR_SEED", "0")
        plain = case.run(bench)
        for name, values in plain.items():
            assert np.array_equal(shuffled[name], values), (case.entry, name)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("group", "k"), [(32, 224), (64, 192), (128, 384)])
def test_a_token_gives_the_same_bits_for_every_m_and_both_tiles(
    bench: Workbench, group: int, k: int, dtype: Activation
) -> None:
    of = product(group, 200, 21, k, group, dtype)
    whole = output_of(bench, of, 128)
    assert np.isfinite(whole).all()
    for tokens in (1, 2, 9, 31, 33, 63, 64, 65, 127, 128, 129, 200):
        for tile in TILES:
            assert np.array_equal(output_of(bench, of, tile, slice(0, tokens)), whole[:tokens]), (tokens, tile)
    assert np.array_equal(output_of(bench, of, 64, slice(150, 190)), whole[150:190])


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("group", GROUP_SIZES)
def test_unit_vectors_read_back_every_weight(bench: Workbench, group: int, dtype: Activation, tile: TileTokens) -> None:
    """A one in column k gives (q - z)·s of that column: exactly in f32, and rounded once to the type of the output."""
    k = 160 if group == 32 else 128 + group
    of = replace(product(5, 1, 83, k, group, dtype), x=np.eye(k))
    exact = of.dequantized()
    assert np.array_equal(added_to_zero(bench, of, tile), exact.T)
    assert np.array_equal(output_of(bench, of, tile), rounded(exact, dtype).T)


@pytest.mark.parametrize("group", GROUP_SIZES)
def test_a_scale_moved_by_two_ulps_leaves_the_bound(bench: Workbench, group: int) -> None:
    """With K = one group a wrong scale has nowhere to hide, not even behind the rounding to f16."""
    of = product(7, 12, 70, group, group, "f16")
    w = of.dequantized()
    expected, error = reference.gemm(of.x, w), reference.accumulation(of.x, w)
    for dtype, compute in (("f16", output_of), ("f32", added_to_zero)):
        assert (np.abs(compute(bench, of) - expected) <= single.rounding(expected, error, dtype)).all()
    moved = of.weight.scales.copy()
    moved.view(np.uint16)[:] += 2
    wrong = replace(of, weight=replace(of.weight, scales=moved))
    for dtype, compute in (("f16", output_of), ("f32", added_to_zero)):
        off = np.abs(compute(bench, wrong) - expected) > single.rounding(expected, error, dtype)
        assert off.any(axis=0).all(), dtype


@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_that_cancel_keep_what_is_left(bench: Workbench, dtype: Activation) -> None:
    """Equal and opposite halves of 64 times the rest."""
    of = cancelling(20, dtype)
    expected = reference.gemm(of.x, of.dequantized())
    magnitudes = np.abs(of.x) @ np.abs(of.dequantized()).T
    assert np.abs(expected).max() < magnitudes.min() / 50
    bound = single.rounding(expected, reference.accumulation(of.x, of.dequantized()), dtype)
    assert (np.abs(output_of(bench, of) - expected) <= bound).all()


def test_negative_inputs_give_negated_outputs(bench: Workbench) -> None:
    of = product(9, 13, 24, 256, 128, "f16")
    assert np.array_equal(output_of(bench, replace(of, x=-of.x)), -output_of(bench, of))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_and_infinity_reach_every_output_of_their_token_and_no_other(
    bench: Workbench, dtype: Activation, value: float
) -> None:
    of = product(10, 70, 16, 96, 32, dtype)
    clean = output_of(bench, of, 128)
    of.x[65, 40] = value
    found = output_of(bench, of, 128)
    assert not np.isfinite(found[65]).any()
    others = np.arange(70) != 65
    assert np.array_equal(found[others], clean[others])


def test_silu_of_large_gates_is_the_gate_or_zero(bench: Workbench) -> None:
    """Gates of +-1024: 1024·up and -0·up, not NaN."""
    weight = IntWeight(np.full((16, 64), 9, np.uint8), np.full((16, 1), 8, np.uint8), np.ones((16, 1), np.float16), 64)
    weight.scales[:8] = 4  # gate rows
    weight.scales[8:] = 0.125
    x = np.zeros((12, 64))
    x[:, 0] = [256.0, -256.0] * 6
    xs, w = Product(x, weight, "f16").upload(bench, gate_up_order(8))
    y = bench.empty((12, 8), "f16")
    gemm_swiglu(bench.kernels, bench.stream, xs, w, y)
    assert bench.download(y).tolist() == [[32768.0] * 8, [0.0] * 8] * 6


@pytest.mark.parametrize("staged", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_heads_of_128_with_shared_keys_and_a_staged_cache(bench: Workbench, dtype: Activation, staged: bool) -> None:
    heads, kv_heads, head_dim, position, tokens = 6, 1, 128, 5, 20
    of = product(11, tokens, (heads + 2 * kv_heads) * head_dim, 64, 64, dtype)
    rope, order = rope_table(40, head_dim), qkv_order(heads, kv_heads, head_dim)
    x, w = of.upload(bench, order)
    cache = empty_cache(bench, kv_heads, head_dim, 32, dtype, staged=staged)
    q = bench.empty((tokens, heads, head_dim), dtype)
    state, table = decode_state(bench, position), bench.upload(rope, "f32")
    gemm_qkv_rope_kv(bench.kernels, bench.stream, x, w, None, table, state, q, cache.layer, heads=heads, tile=64)
    sizes = {"heads": heads, "kv_heads": kv_heads}
    answers = reference.gemm_qkv_rope_kv(of.x, of.dequantized(), None, rope, position, **sizes)
    bounds = single.qkv_bounds(of.x, of.dequantized(), None, rope, position, 32, dtype, **sizes)
    first = 0 if staged else position
    found = [bench.download(q)]
    for side in ("keys", "values"):
        data = from_host_dtype(cache.read(bench, side)[0], dtype)
        found.append(data[:, first : first + tokens].transpose(1, 0, 2))
        assert np.isnan(np.delete(data.astype(np.float32), np.s_[first : first + tokens], axis=1)).all()
    for ours, answer, bound in zip(found, answers, bounds, strict=True):
        assert (np.abs(ours.astype(np.float64) - answer) <= bound).all()


def test_tokens_beyond_the_cache_write_nothing_and_say_so(bench: Workbench) -> None:
    capacity, position, tokens = 16, 6, 15
    of = product(12, tokens, 4 * 64, 64, 64, "f16")
    x, w = of.upload(bench, qkv_order(2, 1, 64))
    cache = empty_cache(bench, 1, 64, capacity, "f16", slots=2)
    q, table = bench.empty((tokens, 2, 64), "f16"), bench.upload(rope_table(capacity, 64), "f32")
    state = decode_state(bench, position, slot=1)
    gemm_qkv_rope_kv(bench.kernels, bench.stream, x, w, None, table, state, q, cache.layer, heads=2)
    assert status_of(bench, state) == STATUS_FULL
    assert np.isfinite(bench.download(q)[: capacity - position]).all()
    for side in ("keys", "values"):
        data, _ = cache.read(bench, side, 1)
        assert np.isnan(data[:, :position]).all()
        assert np.isfinite(data[:, position:]).all()
        assert (cache.read(bench, side, 0)[0].view(np.uint16) == UNWRITTEN).all()


def test_the_tile_follows_from_the_shape() -> None:
    assert tile_tokens(64, 4096, 8) == 64
    assert tile_tokens(65, 4096, 8) == 128
    assert tile_tokens(65, 256, 8) == 64, "four blocks would leave half of eight multiprocessors idle"
    assert tile_tokens(1024, 256, 8) == 128


def test_gemm_launches_the_tile_that_it_chose(bench: Workbench) -> None:
    of = product(13, 66, 8 * 64, 32, 32, "f16")
    x, w = of.upload(bench)
    y = bench.empty((66, w.n), "f16")
    gemm(bench.kernels, bench.stream, x, w, y)
    assert dict(bench.kernels.launched) == {"gemm_128_g32_f16": 1}
    assert np.array_equal(bench.download(y), output_of(bench, of, 64))


def weight_of(bench: Workbench, n: int, k: int) -> T16Weight:
    return upload_t16(pack(product(1, 1, n, k, 32, "f16").weight, "t16"), n, k, 32, bench.upload)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": ((9, 32), "f16")}, r"x has the shape \[9, 32\], expected \[any, 64\]"),
        ({"x": ((9, 64), "f32")}, "x is f32, expected f16 or bf16"),
        ({"y": ((9, 31), "f16")}, r"y has the shape \[9, 31\], expected \[9, 32\]"),
        ({"y": ((9, 32), "bf16")}, "y is bf16, expected f16"),
        ({"bias": ((31,), "f32")}, "bias has the shape"),
        ({"bias": ((32,), "f16")}, "bias is f16"),
        ({"residual": ((9, 32), "f32")}, "expected one of the two"),
        ({"y": None}, "expected one of the two"),
        ({"y": None, "residual": ((8, 32), "f32")}, "residual has the shape"),
        ({"y": None, "residual": ((9, 32), "f16")}, "residual is f16"),
    ],
)
def test_arrays_that_do_not_belong_together_are_refused(bench: Workbench, change: dict, message: str) -> None:
    shapes = {"x": ((9, 64), "f16"), "y": ((9, 32), "f16"), "bias": None, "residual": None} | change
    x = bench.empty(*shapes.pop("x"))
    arrays = {name: None if what is None else bench.empty(*what) for name, what in shapes.items()}
    with pytest.raises(ArrayError, match=message):
        gemm(
            bench.kernels,
            bench.stream,
            x,
            weight_of(bench, 32, 64),
            arrays["y"],
            bias=arrays["bias"],
            residual=arrays["residual"],
        )
    assert not bench.kernels.launched


def test_misaligned_rows_and_half_tiles_of_gates_are_refused(bench: Workbench) -> None:
    x = bench.empty((9, 64), "f16")
    shifted = DeviceArray(x.ptr + 2, (9, 64), "f16", x)
    with pytest.raises(ArrayError, match="not a multiple of 16 bytes"):
        gemm_64(bench.kernels, bench.stream, shifted, weight_of(bench, 32, 64), bench.empty((9, 32), "f16"))
    with pytest.raises(ArrayError, match="24 rows, expected whole tiles"):
        gemm_swiglu(bench.kernels, bench.stream, x, weight_of(bench, 24, 64), bench.empty((9, 12), "f16"))
