"""The layout t16 against its formula written out, its row orders, and eight bits as two times four."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.packing import FORMATS, IntWeight, gate_up_order, pack, qkv_order, reordered, split_int8, unpack
from kernels.packing.t16 import GROUP_SIZES

GOLDENS = Path(__file__).parent / "goldens"
AUTOAWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]


def random_weight(n: int, k: int, group: int, *, bits: int = 4, lowest_zero: int = 0, seed: int = 0) -> IntWeight:
    rng = np.random.default_rng(seed)
    return IntWeight(
        rng.integers(0, 1 << bits, (n, k), dtype=np.uint8),
        rng.integers(lowest_zero, 1 << bits, (n, k // group), dtype=np.uint8),
        rng.uniform(1e-4, 0.5, (n, k // group)).astype(np.float16),
        group,
        bits,
    )


@pytest.mark.parametrize(("n", "k", "group"), [(16, 64, 64), (37, 160, 32), (48, 192, 64), (5, 384, 128)])
def test_every_nibble_stands_where_the_formula_says(n: int, k: int, group: int) -> None:
    weight = random_weight(n, k, group)
    tensors = pack(weight, "t16")
    tiles, steps, groups = (n + 15) // 16, (k + 63) // 64, k // group
    words = tensors["qw"]
    assert (words.dtype, words.shape) == (np.uint32, (tiles, steps, 32, 4))
    found = np.full((16 * tiles, 64 * steps), 255)
    for t, b, g, q, s, e, p, h in np.ndindex(tiles, steps, 8, 4, 4, 2, 2, 2):
        nibble = int(words[t, b, 4 * g + q, s]) >> 4 * (4 * e + 2 * p + h) & 15
        found[16 * t + 8 * h + g, 64 * b + 32 * (s >> 1) + 8 * q + 4 * (s & 1) + 2 * p + e] = nibble
    expected = np.zeros((16 * tiles, 64 * steps), int)
    expected[:n, :k] = weight.q
    assert np.array_equal(found, expected)  # each once, and nothing but zeros in the padding
    for t, j, g, h in np.ndindex(tiles, groups, 8, 2):
        row = 16 * t + 8 * h + g
        scale, zero = (weight.scales[row, j], int(weight.zeros[row, j])) if row < n else (1.0, 0)
        assert tensors["sc"][t, j, g, h] == scale
        assert int(tensors["zp"][t, j, g]) >> 4 * h & 15 == zero


def test_a_group_of_128_takes_the_bytes_it_should() -> None:
    tensors = pack(random_weight(32, 256, 128), "t16")
    assert {name: tensor.dtype.name for name, tensor in tensors.items()} == {
        "qw": "uint32",
        "sc": "float16",
        "zp": "uint8",
    }
    assert sum(tensor.nbytes for tensor in tensors.values()) * 8 / (32 * 256) == 4 + 20 / 128


@settings(max_examples=60, deadline=None)
@given(
    other=st.sampled_from(sorted(set(FORMATS) - {"t16"})),
    n=st.integers(1, 6),
    groups=st.integers(1, 6),
    group=st.sampled_from(GROUP_SIZES),
    seed=st.integers(0, 2**32 - 1),
)
def test_what_any_other_layout_holds_comes_back_from_t16(
    other: str, n: int, groups: int, group: int, seed: int
) -> None:
    rows = n * 7 if other in ("matmulnbits", "autoawq-gemv") else n * 8
    if other == "llm-awq-v2" and group * groups % 64:
        groups *= 2
    weight = random_weight(rows, group * groups, group, lowest_zero=int(other == "gptq"), seed=seed)
    shape = weight.shape
    there = unpack(pack(unpack(pack(weight, other), other, shape, group), "t16"), "t16", shape, group)
    assert there.equals(weight)
    assert unpack(pack(there, other), other, shape, group).equals(weight)


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 50), groups=st.integers(1, 5), group=st.sampled_from(GROUP_SIZES), seed=st.integers(0, 2**32))
def test_unpacking_gives_any_number_of_rows_back(n: int, groups: int, group: int, seed: int) -> None:
    weight = random_weight(n, groups * group, group, seed=seed)
    assert unpack(pack(weight, "t16"), "t16", weight.shape, group).equals(weight)


@pytest.mark.parametrize("group", [16, 96, 256])
def test_other_group_sizes_are_refused(group: int) -> None:
    weight = random_weight(8, 768, group)
    with pytest.raises(ValueError, match=f"group size {group} is not one of 32, 64, 128"):
        pack(weight, "t16")
    with pytest.raises(ValueError, match=f"group size {group} is not one of 32, 64, 128"):
        unpack({}, "t16", (8, 768), group)


def test_tensors_of_another_shape_are_named() -> None:
    tensors = pack(random_weight(40, 128, 64), "t16")
    with pytest.raises(ValueError, match=r"qw is uint32 \[3, 2, 32, 4\], expected uint32 \[4, 2, 32, 4\]"):
        unpack(tensors, "t16", (56, 128), 64)
    with pytest.raises(ValueError, match="'sc' is missing"):
        unpack({"qw": tensors["qw"], "zp": tensors["zp"]}, "t16", (40, 128), 64)
    with pytest.raises(ValueError, match="layout 't16' does not hold 8 bits"):
        pack(random_weight(8, 64, 64, bits=8), "t16")


@pytest.mark.parametrize("ffn", [8, 24, 8960])
def test_gate_and_up_of_a_channel_are_eight_rows_apart(ffn: int) -> None:
    order = gate_up_order(ffn)
    assert sorted(order.tolist()) == list(range(2 * ffn))
    for channel in range(ffn):
        row = 16 * (channel // 8) + channel % 8
        assert (order[row], order[row + 8]) == (channel, ffn + channel)


@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(2, 1, 64), (12, 2, 128), (3, 3, 128)])
def test_rotary_pairs_are_eight_rows_apart(heads: int, kv_heads: int, dim: int) -> None:
    order = qkv_order(heads, kv_heads, dim)
    rows = (heads + 2 * kv_heads) * dim
    assert sorted(order.tolist()) == list(range(rows))
    for head in range(heads + kv_heads):
        for d in range(dim // 2):
            row = head * dim + 16 * (d // 8) + d % 8
            assert (order[row], order[row + 8]) == (head * dim + d, head * dim + d + dim // 2)
    values = (heads + kv_heads) * dim
    assert order[values:].tolist() == list(range(values, rows))


def test_rows_move_with_their_zero_points_and_scales() -> None:
    weight = random_weight(48, 64, 32)
    order = gate_up_order(24)
    moved = reordered(weight, order)
    for row, source in enumerate(order):
        assert np.array_equal(moved.dequantize()[row], weight.dequantize()[source])


@pytest.mark.parametrize("ffn", [0, 12, -8])
def test_channels_that_do_not_fill_tiles_are_refused(ffn: int) -> None:
    with pytest.raises(ValueError, match=f"{ffn} channels"):
        gate_up_order(ffn)


@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(0, 1, 64), (4, 0, 64), (4, 2, 40)])
def test_heads_that_do_not_fill_tiles_are_refused(heads: int, kv_heads: int, dim: int) -> None:
    with pytest.raises(ValueError, match=f"{heads} query and {kv_heads} key heads of {dim}"):
        qkv_order(heads, kv_heads, dim)


@pytest.mark.parametrize("group", GROUP_SIZES)
def test_eight_bits_are_the_sum_of_two_halves_exactly(group: int) -> None:
    weight = random_weight(24, 256, group, bits=8)
    halves = split_int8(weight)
    assert (halves.bits, halves.shape, halves.group_size) == (4, (24, 512), group)
    scales = np.repeat(weight.scales.astype(np.float64), group, axis=1)
    exact = (weight.q.astype(np.float64) - np.repeat(weight.zeros, group, axis=1)) * scales
    parts = halves.q.astype(np.float64) - np.repeat(halves.zeros, group, axis=1)
    parts *= np.repeat(halves.scales.astype(np.float64), group, axis=1)
    assert np.array_equal(parts[:, :256] + parts[:, 256:], exact)


def test_a_scale_whose_sixteenfold_overflows_is_refused() -> None:
    weight = random_weight(8, 64, 64, bits=8)
    weight.scales[3, 0] = 4094  # 16 times it is 65504, the largest f16
    assert np.isfinite(split_int8(weight).scales).all()
    weight.scales[3, 0] = 4096
    with pytest.raises(ValueError, match="scales has the value 4096, above 4094"):
        split_int8(weight)
    with pytest.raises(ValueError, match="4 bits, expected 8"):
        split_int8(random_weight(8, 64, 64))


def autoawq_dequantized(qweight: np.ndarray, qzeros: np.ndarray, scales: np.ndarray, group: int) -> np.ndarray:
    """What AutoAWQ 0.2.9's dequantize_gemm does: fp16 (q - z) * s, [K, N]; nibble i of a word is column ORDER[i]."""

    def columns(words: np.ndarray) -> np.ndarray:
        nibbles = np.stack([words.view(np.uint32) >> np.uint32(4 * i) & np.uint32(15) for i in range(8)], axis=-1)
        return nibbles[..., np.argsort(AUTOAWQ_ORDER)].reshape(words.shape[0], -1).astype(np.int8)

    integers, zeros = columns(qweight), np.repeat(columns(qzeros), group, axis=0)
    return (integers - zeros).astype(np.float16) * np.repeat(scales, group, axis=0)


@pytest.mark.parametrize("group", GROUP_SIZES)
def test_dequantised_values_are_autoawqs_bit_for_bit(group: int) -> None:
    """On tensors that AutoAWQ's own packer made of random integers and zero points (goldens/README.md)."""
    with np.load(GOLDENS / f"groups_of_{group}.npz") as file:
        theirs = {name: file[f"autoawq-gemm/{name}"] for name in ("qweight", "qzeros", "scales")}
    k, n = theirs["qweight"].shape[0], theirs["scales"].shape[1]
    expected = autoawq_dequantized(theirs["qweight"], theirs["qzeros"], theirs["scales"], group)
    ours = unpack(pack(unpack(theirs, "autoawq-gemm", (n, k), group), "t16"), "t16", (n, k), group)
    steps = ours.q.astype(np.int8) - np.repeat(ours.zeros.astype(np.int8), group, axis=1)
    found = steps.astype(np.float16) * np.repeat(ours.scales, group, axis=1)
    assert len(set(ours.zeros.ravel().tolist())) > 8
    assert np.array_equal(found.view(np.uint16), expected.T.view(np.uint16))
