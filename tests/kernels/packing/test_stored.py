"""The table of stored tensors against what the packers make, and layouts told apart by their tensors."""

from __future__ import annotations

import numpy as np
import pytest

from kernels.packing import (
    ALIASES,
    CHECKPOINT_FORMATS,
    FORMATS,
    TENSOR_NAMES,
    IntWeight,
    find_layout,
    pack,
    stored_tensors,
)

SHAPES = [(8, 128), (128, 128), (1024, 128), (128, 1024), (896, 4864), (512, 64)]
GROUPS = [32, 64, 128]


def zeros_of(n: int, k: int, group: int) -> IntWeight:
    shape = (n, k // group)
    return IntWeight(np.zeros((n, k), np.uint8), np.ones(shape, np.uint8), np.ones(shape, np.float16), group)


def kinds(tensors: dict[str, np.ndarray]) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {
        name: ("float" if array.dtype.kind == "f" else array.dtype.name, array.shape) for name, array in tensors.items()
    }


@pytest.mark.parametrize("layout", CHECKPOINT_FORMATS)
@pytest.mark.parametrize(("n", "k"), SHAPES)
@pytest.mark.parametrize("group", GROUPS)
def test_the_table_says_what_packing_makes(layout: str, n: int, k: int, group: int) -> None:
    if k % group:
        with pytest.raises(ValueError, match=f"groups of {group} do not divide its {k} inputs"):
            stored_tensors(layout, (n, k), group)
        return
    packed = kinds(pack(zeros_of(n, k, group), layout))
    table = stored_tensors(layout, (n, k), group)
    assert {name: (spec.kind, spec.shape) for name, spec in table.items()} == packed
    assert packed.keys() <= TENSOR_NAMES
    expected = "gptq" if layout == "gptq-v2" else layout
    assert find_layout(packed, (n, k)) == (expected, group)


def test_tensors_that_may_be_missing_are_marked() -> None:
    missing = {
        layout: [name for name, spec in stored_tensors(layout, (8, 128), 128).items() if not spec.required]
        for layout in CHECKPOINT_FORMATS
    }
    assert missing == {
        "autoawq-gemm": [],
        "autoawq-gemv": [],
        "llm-awq-v2": [],
        "gptq": ["g_idx"],
        "gptq-v2": ["g_idx"],
        "compressed-tensors": ["weight_zero_point"],
    }


def test_checkpoint_layouts_are_layouts_and_aliases_stand_for_tensors() -> None:
    assert set(FORMATS) - set(CHECKPOINT_FORMATS) == {"matmulnbits", "t16"}
    for layout, names in ALIASES.items():
        assert set(names.values()) <= stored_tensors(layout, (8, 128), 128).keys()


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"qweight": ("int32", (128, 1)), "qzeros": ("int32", (1, 1))},
        {"qweight": ("int32", (128, 1)), "qzeros": ("int32", (1, 1)), "scales": ("int32", (1, 8))},
        {"qweight": ("int32", (128, 1)), "qzeros": ("int32", (2, 1)), "scales": ("float", (1, 8))},
        {"weight": ("float", (8, 128))},
        {
            "qweight": ("int32", (128, 1)),
            "qzeros": ("int32", (1, 1)),
            "scales": ("float", (1, 8)),
            "g_idx": ("int32", (128,)),
        },
    ],
)
def test_tensors_of_no_layout_are_not_guessed(tensors: dict[str, tuple[str, tuple[int, ...]]]) -> None:
    assert find_layout(tensors, (8, 128)) is None


def test_an_unknown_layout_is_named() -> None:
    with pytest.raises(ValueError, match="unknown checkpoint layout 'matmulnbits'; known: autoawq-gemm"):
        stored_tensors("matmulnbits", (8, 128), 128)
