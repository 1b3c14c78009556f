"""Our packers against the packers of the projects that the layouts come from, byte for byte (goldens/README.md)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kernels.packing import IntWeight, find_layout, pack, unpack

FOLDER = Path(__file__).parent / "goldens"
CASES = {"groups_of_32": 32, "groups_of_64": 64, "groups_of_128": 128}
LAYOUTS = ["autoawq-gemm", "autoawq-gemv", "llm-awq-v2", "gptq", "compressed-tensors"]


def golden(case: str, layout: str) -> tuple[IntWeight, dict[str, np.ndarray]]:
    """The integers of a case, and what the layout's own packer made of them."""
    with np.load(FOLDER / f"{case}.npz") as file:
        weight = IntWeight(file["q"], file["zeros"], file["scales"], CASES[case])
        tensors = {name.split("/")[1]: file[name] for name in file.files if name.startswith(f"{layout}/")}
    assert tensors
    return weight, tensors


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES)
def test_packing_gives_the_same_bytes(case: str, layout: str) -> None:
    weight, theirs = golden(case, layout)
    ours = pack(weight, layout)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert (ours[name].dtype, ours[name].shape) == (tensor.dtype, tensor.shape), name
        assert ours[name].tobytes() == tensor.tobytes(), name


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES)
def test_unpacking_gives_the_integers_back(case: str, layout: str) -> None:
    weight, theirs = golden(case, layout)
    assert unpack(theirs, layout, weight.shape, weight.group_size).equals(weight)


@pytest.mark.parametrize("case", CASES)
def test_gemv_fast_is_llm_awq_v2_with_a_name_of_its_own(case: str) -> None:
    weight, theirs = golden(case, "autoawq-gemv-fast")
    assert set(theirs) == {"qweight", "qzeros", "scales"}
    assert unpack(theirs, "llm-awq-v2", weight.shape, weight.group_size).equals(weight)
    ours = pack(weight, "llm-awq-v2")
    assert ours["scaled_zeros"].tobytes() == theirs["qzeros"].tobytes()


@pytest.mark.parametrize("case", CASES)
def test_gptq_v2_adds_one_to_every_nibble_of_the_zero_points(case: str) -> None:
    """GPTQModel converts version 1 by adding 0x11111111 to each word."""
    weight, theirs = golden(case, "gptq")
    shifted = (theirs["qzeros"].view(np.uint32) + np.uint32(0x11111111)).view(np.int32)
    assert pack(weight, "gptq-v2")["qzeros"].tobytes() == shifted.tobytes()
    assert unpack(theirs | {"qzeros": shifted}, "gptq-v2", weight.shape, weight.group_size).equals(weight)


@pytest.mark.parametrize("layout", [*LAYOUTS, "autoawq-gemv-fast"])
@pytest.mark.parametrize("case", CASES)
def test_the_layout_is_recognised_by_its_tensors(case: str, layout: str) -> None:
    weight, theirs = golden(case, layout)
    kinds = {
        name: ("float" if tensor.dtype.kind == "f" else tensor.dtype.name, tensor.shape)
        for name, tensor in theirs.items()
    }
    expected = "llm-awq-v2" if layout == "autoawq-gemv-fast" else layout
    assert find_layout(kinds, weight.shape) == (expected, weight.group_size)
