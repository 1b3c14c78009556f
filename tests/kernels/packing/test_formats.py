"""Each stored layout against a reference written from its description, value by value, and as a round trip."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.packing import FORMATS, IntWeight, pack, unpack

GEMM_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]


def random_weight(n: int, k: int, group: int, seed: int = 0, lowest_zero: int = 0) -> IntWeight:
    rng = np.random.default_rng(seed)
    return IntWeight(
        q=rng.integers(0, 16, (n, k), dtype=np.uint8),
        zeros=rng.integers(lowest_zero, 16, (n, k // group), dtype=np.uint8),
        scales=rng.uniform(1e-4, 0.5, (n, k // group)).astype(np.float16),
        group_size=group,
    )


def nibble(word: int, index: int) -> int:
    return (int(word) >> (4 * index)) & 0xF


@pytest.mark.parametrize(("k", "group"), [(128, 128), (224, 32), (192, 64), (384, 128), (256, 256)])
def test_matmulnbits_follows_the_operators_description(k: int, group: int) -> None:
    weight = random_weight(5, k, group)
    tensors = pack(weight, "matmulnbits")
    groups = k // group
    assert tensors["B"].shape == (5, groups, group // 2)
    zero_row = (groups + 1) // 2
    for n in range(5):
        for column in range(k):
            block, inside = divmod(column, group)
            assert nibble(tensors["B"][n, block, inside // 2], inside % 2) == weight.q[n, column]
        for g in range(groups):
            assert nibble(tensors["zero_points"][n * zero_row + g // 2], g % 2) == weight.zeros[n, g]
            assert tensors["scales"][n * groups + g] == float(weight.scales[n, g])


def test_autoawq_gemm_follows_the_nibble_order() -> None:
    weight = random_weight(16, 96, 32)
    tensors = pack(weight, "autoawq-gemm")
    for word in range(2):
        for i in range(8):
            n = 8 * word + GEMM_ORDER[i]
            assert [nibble(tensors["qweight"][k, word], i) for k in range(96)] == weight.q[n].tolist()
            assert [nibble(tensors["qzeros"][g, word], i) for g in range(3)] == weight.zeros[n].tolist()
    assert np.array_equal(tensors["scales"], weight.scales.T)


@pytest.mark.parametrize(
    ("k", "group", "words"), [(896, 128, 1), (1152, 128, 2), (576, 64, 2), (288, 32, 4), (256, 256, 1)]
)
def test_autoawq_gemv_is_sequential_with_padded_groups(k: int, group: int, words: int) -> None:
    weight = random_weight(3, k, group)
    tensors = pack(weight, "autoawq-gemv")
    assert tensors["qzeros"].shape == (3, words)
    assert tensors["scales"].shape == (3, 8 * words)
    for n in range(3):
        assert [nibble(tensors["qweight"][n, c // 8], c % 8) for c in range(k)] == weight.q[n].tolist()
        stored = [nibble(tensors["qzeros"][n, g // 8], g % 8) for g in range(8 * words)]
        assert stored == weight.zeros[n].tolist() + [0] * (8 * words - weight.groups)
        assert tensors["scales"][n].tolist() == weight.scales[n].tolist() + [0.0] * (8 * words - weight.groups)


@pytest.mark.parametrize(("k", "group", "rows"), [(128, 64, 16), (384, 128, 8), (1152, 128, 16), (192, 32, 32)])
def test_llm_awq_v2_follows_the_closed_form(k: int, group: int, rows: int) -> None:
    weight = random_weight(8, k, group)
    tensors = pack(weight, "llm-awq-v2")
    for n in range(8):
        for column in range(k):
            at = 64 * (column // 64) + 16 * (n % 4) + 8 * ((column % 64) // 32) + column % 8
            assert nibble(tensors["qweight"][n // 4, at], (column % 32) // 8) == weight.q[n, column]
    assert tensors["scales"].shape == tensors["scaled_zeros"].shape == (rows, 8)
    for g in range(rows):
        for n in range(8):
            inside = g < weight.groups
            scale = weight.scales[n, g] if inside else np.float16(0)
            zero = int(weight.zeros[n, g]) if inside else 0
            assert tensors["scales"][g, n] == scale
            assert tensors["scaled_zeros"][g, n] == np.float16(-float(scale) * zero)


def test_gptq_stores_zero_points_minus_one_along_k() -> None:
    weight = random_weight(8, 96, 32, lowest_zero=1)
    tensors = pack(weight, "gptq")
    for n in range(8):
        assert [nibble(tensors["qweight"][k // 8, n], k % 8) for k in range(96)] == weight.q[n].tolist()
        assert [nibble(tensors["qzeros"][g, 0], n) + 1 for g in range(3)] == weight.zeros[n].tolist()
    assert tensors["g_idx"].tolist() == [0] * 32 + [1] * 32 + [2] * 32


def test_compressed_tensors_stores_signed_values_plus_eight() -> None:
    weight = random_weight(16, 96, 32)
    tensors = pack(weight, "compressed-tensors")
    assert tensors["weight_shape"].tolist() == [16, 96]
    for n in range(16):
        signed = [nibble(tensors["weight_packed"][n, k // 8], k % 8) - 8 for k in range(96)]
        zeros = [nibble(tensors["weight_zero_point"][n // 8, g], n % 8) - 8 for g in range(3)]
        assert signed == (weight.q[n].astype(int) - 8).tolist()
        assert zeros == (weight.zeros[n].astype(int) - 8).tolist()


def test_symmetric_compressed_tensors_have_zero_point_eight() -> None:
    weight = random_weight(8, 64, 32)
    tensors = pack(weight, "compressed-tensors")
    del tensors["weight_zero_point"]
    assert (unpack(tensors, "compressed-tensors", (8, 64), 32).zeros == 8).all()


@settings(max_examples=60, deadline=None)
@given(
    format=st.sampled_from(sorted(FORMATS)),
    super_rows=st.integers(1, 4),
    groups=st.integers(1, 9),
    group=st.sampled_from([32, 64, 128, 256]),
    seed=st.integers(0, 2**32 - 1),
)
def test_unpack_inverts_pack(format: str, super_rows: int, groups: int, group: int, seed: int) -> None:
    if format == "llm-awq-v2" and group * groups % 64:
        groups *= 2
    if format == "t16":
        group = min(group, 128)
    weight = random_weight(8 * super_rows, group * groups, group, seed, lowest_zero=1 if format == "gptq" else 0)
    again = unpack(pack(weight, format), format, weight.shape, group)
    assert again.equals(weight)


def test_a_missing_or_misshapen_tensor_is_named() -> None:
    tensors = pack(random_weight(8, 64, 32), "autoawq-gemm")
    without = {name: tensor for name, tensor in tensors.items() if name != "qzeros"}
    with pytest.raises(ValueError, match="'qzeros' is missing"):
        unpack(without, "autoawq-gemm", (8, 64), 32)
    with pytest.raises(ValueError, match=r"qweight is int32 \[64, 1\], expected int32 \[128, 1\]"):
        unpack(tensors, "autoawq-gemm", (8, 128), 32)


def test_what_a_layout_cannot_hold_is_refused() -> None:
    zero = IntWeight(np.zeros((8, 32), np.uint8), np.zeros((8, 1), np.uint8), np.ones((8, 1), np.float16), 32)
    with pytest.raises(ValueError, match="a zero point is 0"):
        pack(zero, "gptq")
    lost = IntWeight(np.zeros((8, 64), np.uint8), np.full((8, 1), 15, np.uint8), np.full((8, 1), 6e4, np.float16), 64)
    with pytest.raises(ValueError, match=r"s·z is 900000, above 65504"):
        pack(lost, "llm-awq-v2")
    with pytest.raises(ValueError, match="power of two"):
        pack(random_weight(8, 96, 96), "matmulnbits")
    with pytest.raises(ValueError, match="N is 4"):
        pack(random_weight(4, 64, 32), "autoawq-gemm")
    with pytest.raises(ValueError, match="unknown layout 'marlin'; known: matmulnbits"):
        pack(random_weight(8, 64, 32), "marlin")
    with pytest.raises(ValueError, match="float16 does not hold exactly"):
        tensors = pack(random_weight(8, 64, 32), "matmulnbits")
        unpack(tensors | {"scales": tensors["scales"] + np.float32(1e-7)}, "matmulnbits", (8, 64), 32)


def test_a_zero_point_that_gptq_readers_disagree_on_is_refused() -> None:
    weight = random_weight(8, 64, 32)
    weight.zeros[3, 1] = 15
    tensors = pack(weight, "gptq-v2")  # its 15 is version 1's 16, or 0
    assert unpack(tensors, "gptq-v2", (8, 64), 32).equals(weight)
    with pytest.raises(ValueError, match="a stored zero point is 15, which stands for 16 or 0"):
        unpack(tensors, "gptq", (8, 64), 32)


def test_reordered_gptq_is_refused() -> None:
    tensors = pack(random_weight(8, 64, 32, lowest_zero=1), "gptq")
    tensors["g_idx"] = tensors["g_idx"][::-1].copy()
    with pytest.raises(ValueError, match="desc_act"):
        unpack(tensors, "gptq", (8, 64), 32)
