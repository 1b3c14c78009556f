"""The digest names integers, not their storage, and changes with any of them."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest

from kernels.packing import IntWeight, WeightDigest


def weight(n: int = 6, seed: int = 3) -> IntWeight:
    rng = np.random.default_rng(seed)
    return IntWeight(
        rng.integers(0, 16, (n, 64), dtype=np.uint8),
        rng.integers(0, 16, (n, 2), dtype=np.uint8),
        rng.uniform(0.1, 1, (n, 2)).astype(np.float16),
        32,
    )


def digest_of(**matrices: IntWeight) -> str:
    digest = WeightDigest()
    for name, matrix in matrices.items():
        digest.add(name, matrix)
    return digest.hexdigest()


@pytest.mark.parametrize(("bits", "at_the_end"), [(4, []), (8, [8])])
def test_digest_is_the_documented_one(bits: int, at_the_end: list[int]) -> None:
    four = weight()
    one = IntWeight(four.q, four.zeros, four.scales, 32, bits)
    parts = [hashlib.sha256(array.tobytes()).hexdigest() for array in (one.q, one.zeros, one.scales)]
    line = json.dumps(["q_proj", 6, 64, 32, *parts, *at_the_end]) + "\n"
    assert digest_of(q_proj=one) == hashlib.sha256(line.encode()).hexdigest()


def test_blocks_of_rows_do_not_change_the_digest() -> None:
    one = weight()
    parts = WeightDigest()
    for rows in (slice(0, 1), slice(1, 4), slice(4, 6)):
        parts.add("a", IntWeight(one.q[rows], one.zeros[rows], one.scales[rows], 32))
    parts.add("b", one)
    assert parts.hexdigest() == digest_of(a=one, b=one)


@pytest.mark.parametrize("field", ["q", "zeros", "scales"])
def test_any_changed_value_changes_the_digest(field: str) -> None:
    one, other = weight(), weight()
    array = getattr(other, field)
    array[-1, -1] = array[-1, -1] + 1 if array[-1, -1] < 15 else 0
    assert digest_of(a=one) != digest_of(a=other)


def test_names_and_order_count() -> None:
    one, other = weight(seed=1), weight(seed=2)
    assert digest_of(a=one, b=other) != digest_of(b=other, a=one)
    assert digest_of(a=one) != digest_of(b=one)


def test_a_matrix_cannot_be_reopened() -> None:
    digest = WeightDigest()
    digest.add("a", weight())
    digest.add("b", weight())
    with pytest.raises(ValueError, match="'a' was closed"):
        digest.add("a", weight())


def test_bits_count_and_do_not_mix_within_a_matrix() -> None:
    four = weight()
    eight = IntWeight(four.q, four.zeros, four.scales, four.group_size, bits=8)
    assert digest_of(a=four) != digest_of(a=eight)
    digest = WeightDigest()
    digest.add("a", four)
    with pytest.raises(ValueError, match="'a': rows of"):
        digest.add("a", eight)
