"""Cases for the wrappers of csrc/ptx.cuh, one launch each: a GPU shows here what the emulator takes for granted.

The layouts are those of the PTX ISA (mma.m16n8k16, ldmatrix), written once more in numpy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from kernels.arrays import from_bf16, to_bf16
from kernels.cases.numbers import integers, uniform, words
from kernels.kernel import Case
from kernels.workbench import Workbench

SYMBOL = "ptx"
SOURCE = "conformance.cu"
LANES = 32
F64 = npt.NDArray[np.float64]


def cases() -> Iterator[Case]:
    """A case per wrapper; mma with exact integers, and with values that round."""
    for valid in (32, 19):
        yield _cp_async(valid)
    yield _ldmatrix()
    for dtype in ("f16", "bf16"):
        yield _mma(dtype, integers(1, (400 + 128,), -8, 9).astype(np.float64), "integers")
        yield _mma(dtype, uniform(2, (400 + 128,), -2.0, 2.0), "rounding")
    yield _words("ptx_and_or", (3, LANES), lambda value: (value[0] & value[1]) | value[2])
    yield _words("ptx_ld_stream", (LANES, 4), lambda value: value)
    yield _exp2()


def _launch(bench: Workbench, entry: str, signature: str, *args: int) -> None:
    bench.kernels.launch(entry, (1, 1, 1), (LANES, 1, 1), 0, bench.stream, signature, *args, source=SOURCE)


def _u32(seed: int, shape: tuple[int, ...]) -> npt.NDArray[np.uint32]:
    return (words(seed, int(np.prod(shape))) >> np.uint64(32)).astype(np.uint32).reshape(shape)


def _cp_async(valid: int) -> Case:
    data = _u32(3, (2, LANES, 4))

    def run(bench: Workbench) -> Mapping[str, npt.NDArray[Any]]:
        source, out = bench.upload(data, "u32"), bench.empty(data.shape, "u32")
        _launch(bench, "ptx_cp_async", "PPi", source.ptr, out.ptr, valid)
        return {"out": bench.download(out)}

    expected = data.copy()
    expected[:, valid:] = 0
    return Case(SYMBOL, "ptx_cp_async", f"{valid} of {LANES} lanes", run, {"out": expected})


def _ldmatrix() -> Case:
    data = _u32(4, (LANES, 4))
    matrices = data.view(np.uint16).reshape(4, 8, 8)

    def run(bench: Workbench) -> Mapping[str, npt.NDArray[Any]]:
        source, out = bench.upload(data, "u32"), bench.empty((2, LANES, 4), "u32")
        _launch(bench, "ptx_ldmatrix", "PP", source.ptr, out.ptr)
        return {"out": bench.download(out)}

    def fragments(values: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint32]:
        """Lane l: elements 2(l % 4) and 2(l % 4) + 1 of row l / 4 of each matrix."""
        return np.ascontiguousarray(values.reshape(4, LANES, 2).transpose(1, 0, 2)).view(np.uint32)[:, :, 0]

    expected = np.stack([fragments(matrices), fragments(matrices.transpose(0, 2, 1))])
    return Case(SYMBOL, "ptx_ldmatrix", "plain and transposed", run, {"out": expected})


def _mma(dtype: str, values: F64, name: str) -> Case:
    """a 16x16, b 16x8 and c 16x8 cut from ``values``. Products of 16-bit values are exact in f32.

    Integers up to 8 give sums up to 1032, exact in any order. Otherwise the hardware aligns products to the largest
    before it adds, and cuts: each of the 16 additions loses less than 2**-22 of the sum of magnitudes.
    """
    narrow: Callable[[F64], npt.NDArray[np.uint16]] = to_bf16 if dtype == "bf16" else _f16_bits
    a, b = (narrow(values[start:stop].reshape(16, -1)) for start, stop in ((0, 256), (256, 384)))
    c = values[384:512].reshape(16, 8).astype(np.float32)
    wide = [from_bf16(bits) if dtype == "bf16" else bits.view(np.float16) for bits in (a, b)]
    left, right = (part.astype(np.float64) for part in wide)
    expected = c.astype(np.float64) + left @ right
    summed = np.abs(c).astype(np.float64) + np.abs(left) @ np.abs(right)

    def run(bench: Workbench) -> Mapping[str, npt.NDArray[Any]]:
        arrays = [bench.upload(fragment, "u32") for fragment in (_rows_of_a(a), _columns_of_b(b))]
        sums = bench.upload(_accumulators(c), "f32")
        _launch(bench, f"ptx_mma_{dtype}", "PPP", arrays[0].ptr, arrays[1].ptr, sums.ptr)
        return {"c": bench.download(sums)}

    bound = np.zeros((LANES, 4)) if name == "integers" else 2.0**-22 * 16 * _accumulators(summed)
    return Case(SYMBOL, f"ptx_mma_{dtype}", name, run, {"c": _accumulators(expected)}, {"c": bound})


def _f16_bits(values: F64) -> npt.NDArray[np.uint16]:
    return values.astype(np.float16).view(np.uint16)


def _rows_of_a(a: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint32]:
    """u16 [16, 16] → u32 [32, 4]: rows g and g + 8, columns 2q and 2q + 8 of lane 4g + q."""
    pairs = np.ascontiguousarray(a).view(np.uint32).reshape(2, 8, 2, 4)  # half of rows, g, half of columns, q
    return np.ascontiguousarray(pairs.transpose(1, 3, 2, 0)).reshape(LANES, 4)


def _columns_of_b(b: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint32]:
    """u16 [16, 8] → u32 [32, 2]: rows 2q and 2q + 8 of column g of lane 4g + q."""
    pairs = np.ascontiguousarray(b.T).view(np.uint32).reshape(8, 2, 4)  # g, half of rows, q
    return np.ascontiguousarray(pairs.transpose(0, 2, 1)).reshape(LANES, 2)


def _accumulators(c: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """[16, 8] → [32, 4]: columns 2q and 2q + 1 of row g, then of row g + 8, of lane 4g + q."""
    return np.ascontiguousarray(c.reshape(2, 8, 4, 2).transpose(1, 2, 0, 3)).reshape(LANES, 4)


def _words(entry: str, shape: tuple[int, ...], answer: Callable[[Any], Any]) -> Case:
    data = _u32(5, shape)
    expected = answer(data)

    def run(bench: Workbench) -> Mapping[str, npt.NDArray[Any]]:
        source, out = bench.upload(data, "u32"), bench.empty(expected.shape, "u32")
        _launch(bench, entry, "PP", source.ptr, out.ptr)
        return {"out": bench.download(out)}

    return Case(SYMBOL, entry, "random words", run, {"out": expected})


def _exp2() -> Case:
    """ex2.approx.ftz: 2 ulp (2**-22 relative), and results below 2**-126 become zero."""
    x = np.concatenate([uniform(6, (26,), -40.0, 40.0), [0.0, -0.0, 1.0, -127.0, -149.5, -200.0]]).astype(np.float32)
    expected = np.exp2(x.astype(np.float64))

    def run(bench: Workbench) -> Mapping[str, npt.NDArray[Any]]:
        source, out = bench.upload(x, "f32"), bench.empty(x.shape, "f32")
        _launch(bench, "ptx_exp2_fast", "PP", source.ptr, out.ptr)
        return {"out": bench.download(out)}

    return Case(SYMBOL, "ptx_exp2_fast", "range", run, {"out": expected}, {"out": 2.0**-22 * expected + 2.0**-126})
