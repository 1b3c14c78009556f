"""Arithmetic, matrices, collectives and atomics of the emulator against numpy in float64 and integers."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from kernels.driver.emulator import EmulatorDevice
from kernels.emulator import build_library
from kernels.loading import Kernels
from kernels.workbench import Workbench

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="the emulator needs g++")

SOURCE = Path(__file__).with_name("arithmetic.cu")
Words = npt.NDArray[np.uint32]
Run = Callable[..., Words]


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    library = build_library(SOURCE)
    kernels = Kernels(EmulatorDevice(), image=lambda device, source: library)

    def launch(entry: str, *inputs: npt.NDArray[Any], out: int, block: int = 32, grid: int = 0, n: int = 0) -> Words:
        words = [np.ascontiguousarray(values).view(np.uint32).reshape(-1) for values in inputs]
        words += [np.zeros(1, np.uint32)] * (3 - len(words))
        n = n or words[0].size
        with Workbench(kernels) as bench:
            arrays = [bench.upload(values, "u32") for values in words]
            result = bench.upload(np.zeros(out, np.uint32), "u32")
            arguments = (result.ptr, *(array.ptr for array in arrays), n)
            blocks = (grid or -(-n // block), 1, 1)
            kernels.launch(entry, blocks, (block, 1, 1), 0, bench.stream, "PPPPi", *arguments, source=SOURCE.name)
            return bench.download(result)

    yield launch
    kernels.close()


def halves(seed: int, count: int) -> npt.NDArray[np.float16]:
    """Every kind of f16: all exponents, signs, zeros and subnormal numbers; no NaN or infinity."""
    bits = np.random.default_rng(seed).integers(0, 1 << 16, count, dtype=np.uint16)
    bits[(bits & 0x7C00) == 0x7C00] ^= 0x4000
    return bits.view(np.float16)


def to_bf16(values: npt.NDArray[np.float64]) -> npt.NDArray[np.uint16]:
    """Round float64 to the nearest bf16, ties to even, in one step: by the two neighbours and their middle."""
    below = np.floor(values / (unit := np.exp2(np.floor(np.log2(np.abs(values))) - 7)))
    rest = values / unit - below
    up = (rest > 0.5) | ((rest == 0.5) & (below % 2 == 1))
    rounded = ((below + up) * unit).astype(np.float32)
    return (rounded.view(np.uint32) >> 16).astype(np.uint16)


@pytest.mark.parametrize(
    ("entry", "operation"), [("half_add", np.add), ("half_sub", np.subtract), ("half_mul", np.multiply)]
)
def test_half_arithmetic_rounds_once(run: Run, entry: str, operation: Callable[..., Any]) -> None:
    a, b = halves(1, 1 << 14), halves(2, 1 << 14)
    with np.errstate(over="ignore"):
        exact = operation(a.astype(np.float64), b.astype(np.float64)).astype(np.float16)
    assert np.array_equal(run(entry, a, b, out=a.size // 2).view(np.uint16), exact.view(np.uint16))


@pytest.mark.parametrize("entry", ["half_fma", "half_fma_one"])
def test_half_fma_rounds_once(run: Run, entry: str) -> None:
    a, b, c = halves(3, 1 << 15), halves(4, 1 << 15), halves(5, 1 << 15)
    # Half of them with an addend near the product, where two roundings would show; products of f16 and a sum with a
    # third are exact in float64 here (at most 80 bits apart only where the larger one decides).
    with np.errstate(over="ignore", under="ignore"):
        c[::2] = (-(a * b))[::2]
        c[~np.isfinite(c)] = np.float16(1)
        exact = (a.astype(np.float64) * b.astype(np.float64) + c.astype(np.float64)).astype(np.float16)
    got = run(entry, a, b, c, out=a.size // 2).view(np.float16)
    assert np.array_equal(got, exact)


def test_bf16_fma_rounds_once(run: Run) -> None:
    rng = np.random.default_rng(6)
    words = [
        (rng.uniform(0.5, 2, 1 << 14).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16) for _ in range(3)
    ]
    a, b, c = ((word.astype(np.uint32) << 16).view(np.float32).astype(np.float64) for word in words)
    got = run("bf16_fma", *words, out=words[0].size // 2).view(np.uint16)
    assert np.array_equal(got, to_bf16(a * b + c))


def test_every_half_and_its_neighbourhood_convert(run: Run) -> None:
    bits = np.arange(1 << 16, dtype=np.uint32)
    values = bits.astype(np.uint16).view(np.float16)
    widened = run("half_to_float", bits, out=bits.size, block=256).view(np.float32)
    assert np.array_equal(widened, values.astype(np.float32), equal_nan=True)
    finite = values[np.isfinite(values)].astype(np.float64)
    ties = (np.unique(finite)[1:] + np.unique(finite)[:-1]) / 2  # exactly between two
    near = np.concatenate([ties, np.nextafter(ties.astype(np.float32), np.float32(9e9)), finite, [65519, 65520, 1e9]])
    near = near.astype(np.float32)
    with np.errstate(over="ignore"):
        expected = near.astype(np.float16).view(np.uint16)
    assert np.array_equal(run("half_from_float", near, out=near.size, block=256), expected)


def test_floats_convert_to_the_nearest_bf16(run: Run) -> None:
    bits = np.random.default_rng(7).integers(0x00800000, 0x7F000000, 1 << 14, dtype=np.uint32)
    bits[:1000] = (bits[:1000] & 0xFFFF0000) | 0x8000  # ties
    expected = to_bf16(bits.view(np.float32).astype(np.float64))
    assert np.array_equal(run("bf16_from_float", bits, out=bits.size, block=256), expected)


@pytest.mark.parametrize("entry", ["mma_half", "mma_bfloat"])
def test_mma_multiplies_in_the_layout_of_ptx(run: Run, entry: str) -> None:
    rng = np.random.default_rng(8)
    kept = 0xFFFF0000 if entry == "mma_bfloat" else 0xFFFFE000
    a, b, c = (
        (rng.standard_normal(shape).astype(np.float32).view(np.uint32) & kept).view(np.float32)
        for shape in ((16, 16), (8, 16), (16, 8))
    )

    def narrow(values: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
        if entry == "mma_half":
            return values.astype(np.float16)
        return (values.view(np.uint32) >> 16).astype(np.uint16)

    got = run(entry, narrow(a), narrow(b), c, out=128, n=1).view(np.float32).reshape(16, 8)
    wide = [values.astype(np.float64) for values in (narrow(a).astype(np.float32) if entry == "mma_half" else a, b, c)]
    if entry == "mma_half":
        wide[1] = narrow(b).astype(np.float64)
    exact = wide[0] @ wide[1].T + wide[2]
    # 17 additions in f32, products are exact.
    bound = 17 * 2.0**-24 * (np.abs(wide[0]) @ np.abs(wide[1]).T + np.abs(wide[2]))
    assert (np.abs(got - exact) <= bound).all()


def test_ldmatrix_hands_out_rows_and_columns(run: Run) -> None:
    elements = np.arange(4 * 8 * 8, dtype=np.uint16).reshape(4, 8, 8)
    got = run("load_matrix", elements, out=256, n=1).view(np.uint16).reshape(2, 4, 8, 4, 2)
    assert np.array_equal(got[0], elements.reshape(4, 8, 4, 2))
    assert np.array_equal(got[1], elements.transpose(0, 2, 1).reshape(4, 8, 4, 2))


def test_integer_intrinsics(run: Run) -> None:
    rng = np.random.default_rng(9)
    a, b, c = (rng.integers(0, 1 << 32, 512, dtype=np.uint64).astype(np.uint32) for _ in range(3))
    signed = [values.view(np.int8).reshape(-1, 4).astype(np.int64) for values in (a, b)]
    dots = ((signed[0] * signed[1]).sum(1) + c.view(np.int32)).astype(np.uint64) & 0xFFFFFFFF
    assert np.array_equal(run("dot_bytes", a, b, c, out=512), dots.astype(np.uint32))
    eight = np.concatenate([a.view(np.uint8).reshape(-1, 4), b.view(np.uint8).reshape(-1, 4)], 1)
    nibbles = (c[:, None] >> (4 * np.arange(4, dtype=np.uint32))) & 15
    chosen = np.take_along_axis(eight, (nibbles & 7).astype(np.int64), 1)
    chosen = np.where(nibbles & 8, np.where(chosen & 0x80, 255, 0), chosen).astype(np.uint8)
    assert np.array_equal(run("byte_perm", a, b, c, out=512), np.ascontiguousarray(chosen).view(np.uint32)[:, 0])
    products = [(int(x) << 32 | int(y)) * (int(z) << 32 | int(x)) >> 64 for x, y, z in zip(a, b, c, strict=True)]
    assert run("high_product", a, b, c, out=1024).view(np.uint64).tolist() == products


def test_floats_convert_to_integers_as_on_a_gpu(run: Run) -> None:
    values = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 2147483520, 2147483648, 1e20, -1e20, np.nan, np.inf], np.float32)
    expected = [0, 2, 2, 0, -2, 2147483520, 2147483647, 2147483647, -2147483648, 0, 2147483647]
    assert run("to_int", values, out=values.size).view(np.int32).tolist() == expected


def test_lanes_exchange(run: Run) -> None:
    lane = np.arange(32)
    rows = run("lanes", np.zeros(1, np.uint32), out=224, n=1).reshape(7, 32)
    assert np.array_equal(rows[0], lane // 8 * 8 + 3)
    assert np.array_equal(rows[1], np.where(lane < 2, lane, lane - 2))
    assert np.array_equal(rows[2], np.where(lane % 16 + 5 < 16, lane + 5, lane))
    assert np.array_equal(rows[3], lane ^ 9)
    assert set(rows[4].tolist()) == {sum(1 << i for i in range(0, 32, 3))}
    assert set(rows[5].tolist()) == {5} and set(rows[6].tolist()) == {496}


def test_atomics_add_up_over_threads_and_blocks(run: Run) -> None:
    out = run("atomics", np.zeros(1, np.uint32), out=16, block=64, grid=3, n=99)
    assert out[:1].view(np.float32)[0] == 96
    assert out[1:2].view(np.float16).tolist() == [192, -192]
    assert out[2:4].view(np.uint64)[0] == 192 * 0x100000001
    assert out[4:].tolist()[:9] == [191, 0, 0xFFFFFFFF, 92, 1, 7, 0, 2**32 - 384, 0]
