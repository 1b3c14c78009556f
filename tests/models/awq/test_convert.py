"""Every stored layout into every other: the same integers, read by formulas written out here from the descriptions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.awq.convert import LAYOUTS, convert_tensors
from runtime.errors import ExportError

GEMM_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
Integers = tuple[np.ndarray, np.ndarray, np.ndarray]  # q [N, K], zeros [N, G], scales f16 [N, G]


def integers(n: int, k: int, group: int, seed: int, lowest_zero: int = 1) -> Integers:
    rng = np.random.default_rng(seed)
    scales = rng.uniform(1e-3, 0.5, (n, k // group)).astype(np.float16)
    return rng.integers(0, 16, (n, k)), rng.integers(lowest_zero, 16, (n, k // group)), scales


def written_as_gemm(weight: Integers) -> dict[str, Tensor]:
    """AutoAWQ gemm by its definition, one value after the other."""
    q, zeros, scales = weight

    def words(values: np.ndarray) -> Tensor:  # [rows, N] -> [rows, N / 8]
        found = np.zeros((values.shape[0], values.shape[1] // 8), np.int64)
        for nibble, place in enumerate(GEMM_ORDER):
            found += values[:, place::8].astype(np.int64) << (4 * nibble)
        return torch.from_numpy(found.astype(np.uint32).view(np.int32))

    return {"qweight": words(q.T), "qzeros": words(zeros.T), "scales": torch.from_numpy(scales.T.copy())}


def nibble(words: Tensor, row: int, column: int, place: int) -> int:
    return (int(words[row, column]) >> (4 * place)) & 15


def zero_words(groups: int, group: int) -> int:
    step = {32: 4, 64: 2}.get(group, 1)
    return math.ceil(math.ceil(groups / 8) / step) * step


def read_gemm(t: dict[str, Tensor], n: int, k: int, group: int) -> tuple[int, int, float]:
    word, place = n // 8, GEMM_ORDER.index(n % 8)
    g = k // group
    return nibble(t["qweight"], k, word, place), nibble(t["qzeros"], g, word, place), float(t["scales"][g, n])


def read_gemv(t: dict[str, Tensor], n: int, k: int, group: int) -> tuple[int, int, float]:
    g = k // group
    assert t["scales"].shape[1] == 8 * t["qzeros"].shape[1] == 8 * zero_words(t["qweight"].shape[1] * 8 // group, group)
    return nibble(t["qweight"], n, k // 8, k % 8), nibble(t["qzeros"], n, g // 8, g % 8), float(t["scales"][n, g])


def read_v2(t: dict[str, Tensor], n: int, k: int, group: int) -> tuple[int, int, float]:
    column = 64 * (k // 64) + 16 * (n % 4) + 8 * ((k % 64) // 32) + k % 8
    scale = float(t["scales"][k // group, n])
    zero = -float(t["scaled_zeros" if "scaled_zeros" in t else "qzeros"][k // group, n]) / scale
    return nibble(t["qweight"], n // 4, column, (k % 32) // 8), round(zero), scale


def read_gptq(t: dict[str, Tensor], n: int, k: int, group: int, less: int = 1) -> tuple[int, int, float]:
    g = k // group
    assert int(t["g_idx"][k]) == g
    return (
        nibble(t["qweight"], k // 8, n, k % 8),
        nibble(t["qzeros"], g, n // 8, n % 8) + less,
        float(t["scales"][g, n]),
    )


def read_compressed(t: dict[str, Tensor], n: int, k: int, group: int) -> tuple[int, int, float]:
    g = k // group
    zero = nibble(t["weight_zero_point"], n // 8, g, n % 8)
    return nibble(t["weight_packed"], n, k // 8, k % 8), zero, float(t["weight_scale"][n, g])


def read_matmulnbits(t: dict[str, Tensor], n: int, k: int, group: int) -> tuple[int, int, float]:
    groups = t["B"].shape[1]
    g, inside = divmod(k, group)
    q = (int(t["B"][n, g, inside // 2]) >> (4 * (inside % 2))) & 15
    zero = (int(t["zero_points"][n * ((groups + 1) // 2) + g // 2]) >> (4 * (g % 2))) & 15
    return q, zero, float(t["scales"][n * groups + g])


READERS: dict[str, Callable[..., tuple[int, int, float]]] = {
    "autoawq-gemm": read_gemm,
    "autoawq-gemv": read_gemv,
    "llm-awq-v2": read_v2,
    "autoawq-gemv_fast": read_v2,
    "gptq": read_gptq,
    "gptq-v2": lambda t, n, k, group: read_gptq(t, n, k, group, less=0),
    "compressed-tensors": read_compressed,
    "matmulnbits": read_matmulnbits,
}


def checkpoint(*weights: Integers) -> dict[str, Tensor]:
    """Linears of a checkpoint in AutoAWQ's form, between tensors of its own."""
    found = {"model.embed_tokens.weight": torch.ones(3, 4), "model.layers.0.self_attn.q_proj.bias": torch.ones(8)}
    for index, weight in enumerate(weights):
        found |= {f"model.layers.{index}.self_attn.q_proj.{k}": v for k, v in written_as_gemm(weight).items()}
    return found


def of_linear(tensors: dict[str, Tensor], index: int) -> dict[str, Tensor]:
    prefix = f"model.layers.{index}.self_attn.q_proj."
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix) and not k.endswith("bias")}


def test_every_layout_has_a_reader_here() -> None:
    assert set(READERS) == set(LAYOUTS)


@pytest.mark.parametrize("target", LAYOUTS)
@pytest.mark.parametrize("group", [32, 64, 128])
def test_a_checkpoint_in_another_layout_says_the_same_value_by_value(target: str, group: int) -> None:
    weights = [integers(8, 128, group, 1), integers(16, 256, group, 2)]
    found = convert_tensors(checkpoint(*weights), "autoawq-gemm", target, group_size=group)
    assert torch.equal(found["model.embed_tokens.weight"], torch.ones(3, 4))
    assert "model.layers.0.self_attn.q_proj.bias" in found
    for index, (q, zeros, scales) in enumerate(weights):
        tensors = of_linear(found, index)
        for n in range(q.shape[0]):
            for k in range(q.shape[1]):
                expected = (q[n, k], zeros[n, k // group], float(scales[n, k // group]))
                assert READERS[target](tensors, n, k, group) == expected


@pytest.mark.parametrize("source", LAYOUTS)
@pytest.mark.parametrize("target", LAYOUTS)
def test_every_layout_into_every_other_is_the_direct_one(source: str, target: str) -> None:
    first = checkpoint(integers(8, 128, 64, 5))
    by_source = convert_tensors(
        convert_tensors(first, "autoawq-gemm", source, group_size=64), source, target, group_size=64
    )
    direct = convert_tensors(first, "autoawq-gemm", target, group_size=64)
    assert by_source.keys() == direct.keys()
    for name, tensor in direct.items():
        assert by_source[name].dtype == tensor.dtype
        assert torch.equal(by_source[name], tensor)


@settings(max_examples=25, deadline=None)
@given(
    n=st.sampled_from([8, 16, 24]),
    groups=st.integers(1, 5),
    group=st.sampled_from([64, 128]),
    target=st.sampled_from(LAYOUTS),
    seed=st.integers(0, 99),
)
def test_there_and_back_over_shapes(n: int, groups: int, group: int, target: str, seed: int) -> None:
    first = checkpoint(integers(n, groups * group, group, seed))
    there = convert_tensors(first, "autoawq-gemm", target, group_size=group)
    back = convert_tensors(there, target, "autoawq-gemm", group_size=group)
    assert back.keys() == first.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in first.items())


def test_whole_rows_and_wider_scales_that_are_exact() -> None:
    weight = integers(8, 192, 192, 3)
    tensors = checkpoint(weight)
    name = "model.layers.0.self_attn.q_proj.scales"
    tensors[name] = tensors[name].float()
    found = of_linear(convert_tensors(tensors, "autoawq-gemm", "compressed-tensors", group_size=-1), 0)
    assert read_compressed(found, 3, 190, 192) == (weight[0][3, 190], weight[1][3, 0], float(weight[2][3, 0]))


def change(name: str, value: Any) -> Callable[[dict[str, Tensor]], None]:
    def apply(tensors: dict[str, Tensor]) -> None:
        key = f"model.layers.0.self_attn.q_proj.{name}"
        if value is None:
            del tensors[key]
        else:
            tensors[key] = value

    return apply


@pytest.mark.parametrize(
    ("edit", "source", "target", "said"),
    [
        (change("scales", None), "autoawq-gemm", "gptq", "q_proj: tensor 'scales' is missing"),
        (change("qweight", None), "autoawq-gemm", "gptq", "q_proj: tensor 'qweight' is missing"),
        (change("g_idx", torch.zeros(128)), "autoawq-gemm", "gptq", "q_proj: 'g_idx' has no meaning"),
        (change("scales", torch.full((2, 8), torch.inf)), "autoawq-gemm", "gptq", "q_proj: scales"),
        (lambda t: None, "autoawq-gemm", "awq", "unknown layout 'awq'"),
        (lambda t: None, "matmulnbits", "gptq", "q_proj: tensor 'B' is missing"),
        (lambda t: t.clear(), "autoawq-gemm", "gptq", "no tensor belongs to a linear"),
    ],
)
def test_faults_are_named(edit: Any, source: str, target: str, said: str) -> None:
    tensors = checkpoint(integers(8, 128, 64, 5))
    edit(tensors)
    with pytest.raises(ExportError, match=said):
        convert_tensors(tensors, source, target, group_size=64)


def test_what_a_layout_cannot_hold_is_refused_by_the_linears_name() -> None:
    q, zeros, scales = integers(8, 128, 64, 5)
    zeros[3, 1] = 0
    with pytest.raises(ExportError, match=r"layers\.0\.self_attn\.q_proj: .*zero point"):
        convert_tensors(checkpoint((q, zeros, scales)), "autoawq-gemm", "gptq", group_size=64)
    order = convert_tensors(checkpoint(integers(8, 128, 64, 5)), "autoawq-gemm", "gptq", group_size=64)
    order["model.layers.0.self_attn.q_proj.g_idx"] = torch.arange(127, -1, -1, dtype=torch.int32) // 64
    with pytest.raises(ExportError, match="desc_act"):
        convert_tensors(order, "gptq", "autoawq-gemm", group_size=64)
