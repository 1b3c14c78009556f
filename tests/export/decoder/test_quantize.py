"""What the quantiser refuses, by the name of the linear; its values are tested in ``tests/kernels/packing``."""

from __future__ import annotations

import numpy as np
import pytest

from export.decoder.quantize import choose_group_size, quantize_rtn
from kernels.packing import quantize_nearest
from runtime.errors import ExportError


def test_blocks_of_rows_go_through_the_shared_quantiser() -> None:
    weight = np.random.default_rng(1).normal(0, 1, (10, 128)).astype(np.float32)
    assert quantize_rtn(weight, 64).equals(quantize_nearest(weight, 64))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_by_name(value: float) -> None:
    weight = np.zeros((2, 32), np.float32)
    weight[1, 3] = value
    with pytest.raises(ExportError, match=r"layers\.3: has values that are not finite"):
        quantize_rtn(weight, 32, "layers.3")


def test_a_range_above_f16_is_refused() -> None:
    weight = np.zeros((1, 32), np.float32)
    weight[0, 0] = 2e6
    with pytest.raises(ExportError, match="more than f16 scales hold"):
        quantize_rtn(weight, 32)


@pytest.mark.parametrize(
    ("k", "group", "hint"),
    [(96, 128, "--group-size 32"), (192, 128, "--group-size 64"), (40, 32, "no group size fits"), (128, 16, "128")],
)
def test_a_group_that_does_not_divide_names_one_that_does(k: int, group: int, hint: str) -> None:
    with pytest.raises(ExportError) as caught:
        quantize_rtn(np.zeros((1, k), np.float32), group)
    assert hint in str(caught.value.hint)


def test_stored_groups_win_over_none_and_refuse_others() -> None:
    assert choose_group_size(None, None) == 128
    assert choose_group_size(64, None) == 64
    assert choose_group_size(None, 32) == choose_group_size(32, 32) == 32
    with pytest.raises(ExportError, match="--group-size 128: the checkpoint's integers are in groups of 32") as caught:
        choose_group_size(128, 32)
    assert "--group-size 32" in str(caught.value.hint)


def test_eight_bits_go_through_the_same_quantiser() -> None:
    weight = np.random.default_rng(1).normal(0, 1, (10, 128)).astype(np.float32)
    assert quantize_rtn(weight, 64, bits=8).equals(quantize_nearest(weight, 64, 8))
