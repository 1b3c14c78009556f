"""Arrays as plain values: parts of them, what a kernel refuses, and bfloat16 on the host."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from kernels.arrays import NUMPY, DeviceArray, check_array, from_bf16, from_host_dtype, to_bf16, to_host_dtype
from kernels.errors import ArrayError

OWNER = object()


def test_sizes_follow_shape_and_dtype() -> None:
    array = DeviceArray(0x1000, (3, 5, 7), "bf16", OWNER)
    assert (array.size, array.itemsize, array.nbytes) == (105, 2, 210)
    assert {name: DeviceArray(0, (), name).nbytes for name in NUMPY} == {  # type: ignore[arg-type]
        "f16": 2, "bf16": 2, "f32": 4, "i8": 1, "u8": 1, "i32": 4, "u32": 4, "u64": 8,
    }  # fmt: skip


def test_rows_share_the_memory_and_its_owner() -> None:
    part = DeviceArray(0x1000, (6, 4), "f32", OWNER).rows(2, 5)
    assert (part.ptr, part.shape, part.dtype) == (0x1000 + 32, (3, 4), "f32")
    assert part.owner is OWNER
    assert DeviceArray(0x1000, (6, 4), "f32").rows(6, 6).shape == (0, 4)


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (3, 2), (0, 7)])
def test_rows_that_are_not_there_are_refused(start: int, stop: int) -> None:
    with pytest.raises(ArrayError, match=f"rows {start}..{stop} of an array of 6 rows"):
        DeviceArray(0x1000, (6, 4), "f32").rows(start, stop)


def test_reshape_keeps_every_value() -> None:
    array = DeviceArray(0x1000, (6, 4), "f16", OWNER)
    assert array.reshape(2, 12) == DeviceArray(0x1000, (2, 12), "f16", OWNER)
    with pytest.raises(ArrayError, match=r"shape \(6, 4\) cannot be viewed as \(5, 5\)"):
        array.reshape(5, 5)


def test_check_takes_what_fits() -> None:
    array = DeviceArray(0x1010, (6, 4), "f16")
    check_array("x", array, "f16", (6, 4))
    check_array("x", array, ("f16", "bf16"), (None, 4))
    check_array("x", DeviceArray(0x1004, (6,), "f32"), "f32", (6,), alignment=4)


@pytest.mark.parametrize(
    ("array", "dtypes", "shape", "told"),
    [
        (DeviceArray(0x1000, (6, 4), "f32"), ("f16", "bf16"), (6, 4), "x is f32, expected f16 or bf16"),
        (DeviceArray(0x1000, (6, 4), "f16"), "f16", (6, 5), "x has the shape [6, 4], expected [6, 5]"),
        (DeviceArray(0x1000, (6, 4), "f16"), "f16", (None,), "x has the shape [6, 4], expected [any]"),
        (DeviceArray(0x1000, (0, 4), "f16"), "f16", (None, 4), "x has the shape [0, 4], expected [any, 4]"),
        (DeviceArray(0, (6, 4), "f16"), "f16", (6, 4), "x is a null pointer"),
        (DeviceArray(0x1008, (6, 4), "f16"), "f16", (6, 4), "x lies at 0x1008, which is not a multiple of 16"),
    ],
)
def test_check_names_what_does_not_fit(array: DeviceArray, dtypes: Any, shape: Any, told: str) -> None:
    with pytest.raises(ArrayError) as caught:
        check_array("x", array, dtypes, shape)
    assert told in str(caught.value)


@given(st.integers(0, 2**16 - 1))
def test_every_bf16_comes_back(bits: int) -> None:
    value = from_bf16(np.array([bits], np.uint16))
    back = to_bf16(value)
    if np.isnan(value[0]):
        assert np.isnan(from_bf16(back)[0])
    else:
        assert back[0] == bits


@given(st.floats(width=32, allow_nan=False))
def test_bf16_is_the_nearest_and_ties_go_to_even(value: float) -> None:
    found = int(to_bf16(np.array([value], np.float32))[0])
    exact = np.float32(value)
    if np.isinf(exact):
        assert from_bf16(np.array([found], np.uint16))[0] == exact
        return
    around = [bits for bits in (found - 1, found, found + 1) if 0 <= bits < 2**16 and bits & 0x7F80 != 0x7F80]
    distances = {bits: abs(float(from_bf16(np.array([bits], np.uint16))[0]) - float(exact)) for bits in around}
    if found in distances:
        nearest = min(distances.values())
        assert distances[found] == nearest
        assert list(distances.values()).count(nearest) == 1 or found % 2 == 0
    else:  # beyond the largest finite value by half a step or more
        assert abs(float(exact)) >= float(from_bf16(np.array([0x7F7F], np.uint16))[0])


@pytest.mark.parametrize(("value", "rounded"), [(1 + 2**-8, 1.0), (1 + 3 * 2**-8, 1 + 2**-6), (-1 - 2**-8, -1.0)])
def test_bf16_halfway_goes_to_even(value: float, rounded: float) -> None:
    assert from_bf16(to_bf16(np.array([value], np.float32)))[0] == rounded


def test_nan_stays_nan_whatever_its_bits() -> None:
    bits = np.array([0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF, 0xFF800001], np.uint32)
    assert np.isnan(from_bf16(to_bf16(bits.view(np.float32)))).all()


def test_host_dtypes_go_both_ways() -> None:
    values = np.array([[1.5, -2.0]])
    assert to_host_dtype(values, "bf16").dtype == np.uint16
    assert np.array_equal(from_host_dtype(to_host_dtype(values, "bf16"), "bf16"), values)
    strided = to_host_dtype(np.zeros((4, 4))[:, ::2], "f16")
    assert strided.flags.c_contiguous and strided.dtype == np.float16
