"""Int4 weights as 16-bit floats: bit for bit what AutoAWQ computes with, on the emulator."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from kernels.arrays import Activation
from kernels.cases.dequantize import cases
from kernels.cases.products import Product, product
from kernels.errors import ArrayError
from kernels.kernel import Case
from kernels.launch.dequantize import KERNELS, dequantize
from kernels.launch.weights import upload_t16
from kernels.packing import IntWeight, pack, unpack
from kernels.packing.t16 import GROUP_SIZES
from kernels.reference.dequantize import dequantize as reference
from kernels.workbench import Workbench

CASES = list(cases())
# Shapes of a small checkpoint's layer: q, k and v, o, gate and up, down; odd rows as a head may have.
CHECKPOINT = ((64, 64), (128, 256), (256, 128), (96, 384), (33, 256))


def expanded(bench: Workbench, weight: IntWeight, dtype: Activation = "f16") -> np.ndarray:
    """The kernel's answer; bf16 as f32."""
    _, w = Product(np.zeros((1, weight.shape[1])), weight, dtype).upload(bench)
    out = bench.empty(weight.shape, dtype)
    dequantize(bench.kernels, bench.stream, w, out)
    return bench.download(out)


def autoawq(tensors: dict[str, np.ndarray], group_size: int) -> np.ndarray:
    """AutoAWQ's weights [in, out] of a stored layer: its unpacking by shifts, its order of nibbles, its arithmetic.

    Written from the format: subtract in int8, multiply by the group's scale in fp16.
    """
    shifts = np.arange(0, 32, 4, dtype=np.uint32)
    places = [0, 4, 1, 5, 2, 6, 3, 7]  # nibble of the word that output 8c + i has

    def unpacked(words: np.ndarray) -> np.ndarray:
        nibbles = ((words.view(np.uint32)[:, :, None] >> shifts) & 15).astype(np.int8)
        return nibbles[:, :, places].reshape(words.shape[0], -1)

    steps = unpacked(tensors["qweight"]) - np.repeat(unpacked(tensors["qzeros"]), group_size, axis=0)
    return steps.astype(np.float16) * np.repeat(tensors["scales"], group_size, axis=0)


@pytest.mark.parametrize("group", GROUP_SIZES)
def test_every_weight_of_a_checkpoint_is_what_autoawq_computes_with(bench: Workbench, group: int) -> None:
    """Random integers, zero points and scales of every size that f16 has, stored as AutoAWQ stores them."""
    rng = np.random.default_rng(group)
    for n, k in [(n - n % 8, k) for n, k in CHECKPOINT if k % group == 0]:
        scales = rng.integers(1, 0x7C00, (n, k // group)).astype(np.uint16).view(np.float16)
        scales = np.minimum(scales, np.float16(4096))  # 15 times more is still finite
        weight = IntWeight(
            rng.integers(0, 16, (n, k)).astype(np.uint8),
            rng.integers(0, 16, scales.shape).astype(np.uint8),
            scales,
            group,
        )
        stored = pack(weight, "autoawq-gemm")
        found = expanded(bench, unpack(stored, "autoawq-gemm", (n, k), group))
        assert np.array_equal(found.view(np.uint16), np.ascontiguousarray(autoawq(stored, group).T).view(np.uint16))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.entry)
def test_outputs_are_exact(bench: Workbench, case: Case) -> None:
    outputs = case.run(bench)
    assert np.array_equal(outputs["out"], case.expected["out"])
    assert dict(bench.kernels.launched) == {case.entry: 1}


def test_the_cases_cover_every_entry() -> None:
    assert {case.entry for case in CASES} == {entry for kernel in KERNELS for entry in kernel.entries}


@pytest.mark.usefixtures("schedule")
def test_no_schedule_changes_a_bit(bench: Workbench) -> None:
    for case in CASES:
        assert np.array_equal(case.run(bench)["out"], case.expected["out"])


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_all_integers_with_all_zero_points(bench: Workbench, dtype: Activation) -> None:
    """Every pair of q and z once, in rows g and g + 8 of a tile alike, against numpy's own rounding to f16."""
    q = np.tile(np.repeat(np.arange(16, dtype=np.uint8), 4), (16, 1))
    zeros = np.arange(16, dtype=np.uint8)[:, None]
    weight = IntWeight(q, zeros, np.full((16, 1), 0.0999755859375, np.float16), 64)
    steps = q.astype(np.float32) - zeros
    found = expanded(bench, weight, dtype)
    assert np.array_equal(found, reference(weight, dtype))
    if dtype == "f16":
        assert np.array_equal(found, steps.astype(np.float16) * weight.scales)
    else:
        exact = steps * np.float32(weight.scales[0, 0])
        half_ulp = np.where(exact == 0, 0, np.exp2(np.frexp(exact)[1] - 9.0))
        assert (np.abs(found - exact) <= half_ulp).all()
        assert (found.view(np.uint32) & 0xFFFF == 0).all()


@pytest.mark.parametrize(("shape", "dtype", "message"), [((16, 65), "f16", "shape"), ((16, 64), "f32", "out is f32")])
def test_arrays_that_do_not_fit_are_refused(
    bench: Workbench, shape: tuple[int, int], dtype: Activation, message: str
) -> None:
    weight = replace(product(1, 1, 16, 64, 64, "f16")).weight
    w = upload_t16(pack(weight, "t16"), 16, 64, 64, bench.upload)
    with pytest.raises(ArrayError, match=message):
        dequantize(bench.kernels, bench.stream, w, bench.empty(shape, dtype))
