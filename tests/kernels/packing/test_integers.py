"""The canonical integer weight: validation, and what it stands for."""

from __future__ import annotations

import numpy as np
import pytest

from kernels.packing import IntWeight, exact_f16


def arrays(n: int = 2, k: int = 64, group: int = 32) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    rng = np.random.default_rng(7)
    q = rng.integers(0, 16, (n, k), dtype=np.uint8)
    zeros = rng.integers(0, 16, (n, k // group), dtype=np.uint8)
    return q, zeros, rng.uniform(1e-3, 1, (n, k // group)).astype(np.float16), group


def test_dequantize_is_scale_times_distance_from_the_zero_point() -> None:
    q, zeros, scales, group = arrays()
    result = IntWeight(q, zeros, scales, group).dequantize()
    for n in range(2):
        for k in range(64):
            exact = (int(q[n, k]) - int(zeros[n, k // group])) * float(scales[n, k // group])
            assert result[n, k] == np.float32(exact)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": np.full((2, 64), 16, np.uint8)}, "q has the value 16, above 15"),
        ({"zeros": np.full((2, 2), 17, np.uint8)}, "zeros has the value 17"),
        ({"zeros": np.zeros((2, 3), np.uint8)}, r"zeros has shape \(2, 3\), expected \(2, 2\)"),
        ({"scales": np.full((2, 2), np.nan, np.float16)}, "scales has the value nan"),
        ({"scales": np.full((2, 2), np.inf, np.float16)}, "scales has the value inf"),
        ({"scales": np.full((2, 2), -1, np.float16)}, "scales has the value -1, expected positive finite"),
        ({"scales": np.zeros((2, 2), np.float16)}, "scales has the value 0, expected positive"),
        ({"bits": 3}, "bits is 3"),
        ({"bits": 5}, "bits is 5"),
        ({"scales": np.zeros((2, 2), np.float32)}, "scales is float32"),
        ({"q": np.zeros((2, 0), np.uint8)}, "non-empty"),
        ({"group_size": 48}, "48 does not divide the 64"),
    ],
)
def test_what_cannot_be_a_weight_is_refused(change: dict[str, object], message: str) -> None:
    q, zeros, scales, group = arrays()
    fields: dict[str, object] = {"q": q, "zeros": zeros, "scales": scales, "group_size": group} | change
    with pytest.raises(ValueError, match=message):
        IntWeight(**fields)  # type: ignore[arg-type]


def test_eight_bits_hold_256_levels() -> None:
    q = np.arange(256, dtype=np.uint8).reshape(2, 128)
    weight = IntWeight(q, np.full((2, 1), 255, np.uint8), np.full((2, 1), 0.25, np.float16), 128, bits=8)
    assert weight.levels == 255
    assert np.array_equal(weight.dequantize(), (q.astype(np.float32) - 255) / 4)
    four = IntWeight(q % 16, np.zeros((2, 1), np.uint8), weight.scales, 128)
    assert not four.equals(IntWeight(four.q, four.zeros, four.scales, 128, bits=8))


@pytest.mark.parametrize("bits", [0x0001, 0x03FF, 0x0400, 0x7BFF])
def test_every_positive_finite_scale_is_taken(bits: int) -> None:
    q, zeros, scales, group = arrays()
    scales[:] = np.array(bits, np.uint16).view(np.float16)
    assert np.isfinite(IntWeight(q, zeros, scales, group).dequantize()).all()


@pytest.mark.parametrize("value", [1 + 2**-11, 2.0**-25, 1e5, np.nan])
def test_floats_become_f16_exactly_or_are_named(value: float) -> None:
    held = np.array([0.5, 65504, 2.0**-24, 0.0999755859375], np.float32)
    assert np.array_equal(exact_f16(held).astype(np.float32), held)
    with pytest.raises(ValueError, match=r"^a has the value .*, which float16 does not hold exactly"):
        exact_f16(np.append(held, np.float32(value)), "a")
