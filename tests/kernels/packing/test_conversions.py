"""From every layout into every other: the same integers, over each layout's whole range and not a step beyond."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kernels.packing import FORMATS, IntWeight, pack, unpack

MAX_F16 = 65504.0
# Smallest and largest subnormal, smallest normal, one, largest.
EDGES = [0x0001, 0x03FF, 0x0400, 0x3C00, 0x7BFF]
SCALE_BITS = st.one_of(st.sampled_from(EDGES), st.integers(1, 0x7BFF))


@st.composite
def weights(draw: st.DrawFn) -> IntWeight:
    """Shapes that every layout takes, all integers, and any positive finite f16 as a scale."""
    group = draw(st.sampled_from([32, 64, 128]))
    n, k = 8 * draw(st.integers(1, 3)), 128 * draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    lowest, highest = sorted((draw(st.integers(0, 15)), draw(st.integers(0, 15))))
    shape = (n, k // group)
    bits = draw(st.lists(SCALE_BITS, min_size=1, max_size=4))
    return IntWeight(
        q=rng.integers(0, 16, (n, k), dtype=np.uint8),
        zeros=rng.integers(lowest, highest + 1, shape, dtype=np.uint8),
        scales=rng.choice(np.array(bits, np.uint16), shape).view(np.float16),
        group_size=group,
    )


def refusal(weight: IntWeight, layout: str) -> str | None:
    """What the layout's range says of a weight, written out again: the words of its refusal, or None."""
    if layout == "gptq" and (weight.zeros == 0).any():
        return "a zero point is 0"
    if layout == "llm-awq-v2" and (weight.scales.astype(np.float64) * weight.zeros).max() > MAX_F16:
        return "above 65504"
    return None


@settings(max_examples=60, deadline=None)
@given(weight=weights())
def test_every_layout_into_every_other_keeps_the_integers(weight: IntWeight) -> None:
    held = [layout for layout in FORMATS if refusal(weight, layout) is None]
    for source in held:
        first = unpack(pack(weight, source), source, weight.shape, weight.group_size)
        for target in held:
            again = unpack(pack(first, target), target, weight.shape, weight.group_size)
            assert again.equals(weight), (source, target)


@settings(max_examples=60, deadline=None)
@given(weight=weights(), layout=st.sampled_from(sorted(FORMATS)))
def test_what_lies_outside_a_layouts_range_is_refused_by_name(weight: IntWeight, layout: str) -> None:
    words = refusal(weight, layout)
    if words is None:
        pack(weight, layout)
    else:
        with pytest.raises(ValueError, match=words):
            pack(weight, layout)


@pytest.mark.parametrize(
    ("scale", "zero", "held"),
    [(65504.0, 1, True), (65504.0, 2, False), (32752.0, 2, True), (32768.0, 2, False), (4364.0, 15, True)]
    + [(4368.0, 15, False), (5956.0, 11, False)],  # 5956·11 = 65516 would still round to 65504
)
def test_llm_awq_v2_holds_products_up_to_the_largest_f16(scale: float, zero: int, held: bool) -> None:
    weight = IntWeight(
        np.full((8, 64), 9, np.uint8), np.full((8, 1), zero, np.uint8), np.full((8, 1), scale, np.float16), 64
    )
    if held:
        assert unpack(pack(weight, "llm-awq-v2"), "llm-awq-v2", (8, 64), 64).equals(weight)
    else:
        with pytest.raises(ValueError, match=f"s·z is {scale * zero:g}, above 65504"):
            pack(weight, "llm-awq-v2")


def test_llm_awq_v2_gives_back_every_zero_point_of_every_scale() -> None:
    scales = np.arange(1, 0x7C00, dtype=np.uint16).view(np.float16)
    for zero in range(16):
        held = scales[scales.astype(np.float64) * zero <= MAX_F16]
        held = held[: len(held) // 8 * 8].reshape(8, -1)  # what is cut off at the end is covered by the edges above
        weight = IntWeight(
            np.zeros((8, 64 * held.shape[1]), np.uint8), np.full(held.shape, zero, np.uint8), held.copy(), 64
        )
        again = unpack(pack(weight, "llm-awq-v2"), "llm-awq-v2", weight.shape, 64)
        assert (again.zeros == zero).all()


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 24), k=st.sampled_from([32, 40, 64, 96, 128]), layout=st.sampled_from(sorted(FORMATS)))
@example(n=4, k=64, layout="llm-awq-v2")
def test_sides_that_a_layout_does_not_take_are_named(n: int, k: int, layout: str) -> None:
    group = 32 if k % 32 == 0 else 8
    weight = IntWeight(
        np.ones((n, k), np.uint8), np.ones((n, k // group), np.uint8), np.ones((n, k // group), np.float16), group
    )
    by_n = n % 8 != 0 and layout not in ("autoawq-gemv", "matmulnbits", "t16")
    by_k = k % 64 != 0 and layout == "llm-awq-v2"
    by_group = group == 8 and layout in ("autoawq-gemv", "llm-awq-v2", "matmulnbits", "t16")
    if by_n or by_k or by_group:
        with pytest.raises(ValueError, match=rf"N is {n}|K is {k}|group size 8 is not"):
            pack(weight, layout)
    else:
        assert unpack(pack(weight, layout), layout, weight.shape, group).equals(weight)


@pytest.mark.parametrize("layout", sorted(FORMATS))
def test_eight_bits_are_held_by_matmulnbits_alone(layout: str) -> None:
    rng = np.random.default_rng(3)
    q, zeros = (rng.integers(0, 256, shape, dtype=np.uint8) for shape in ((8, 128), (8, 2)))
    weight = IntWeight(q, zeros, np.full((8, 2), 0.5, np.float16), 64, bits=8)
    if layout == "matmulnbits":
        assert unpack(pack(weight, layout), layout, weight.shape, 64, bits=8).equals(weight)
    else:
        with pytest.raises(ValueError, match=f"'{layout}' does not hold 8 bits"):
            pack(weight, layout)
        with pytest.raises(ValueError, match="does not hold 8 bits"):
            unpack({}, layout, weight.shape, 64, bits=8)
