"""The reference of RMSNorm, against sums by hand."""

from __future__ import annotations

import math

import numpy as np

from kernels.reference.norm import rmsnorm_residual


def test_a_row_is_divided_by_its_root_mean_square_after_the_addition() -> None:
    rng = np.random.default_rng(0)
    residual, delta, gamma = rng.standard_normal((2, 6)), rng.standard_normal((2, 6)), rng.standard_normal(6)
    total, normed = rmsnorm_residual(residual, gamma, eps=0.25, delta=delta, copies=2)
    for row in range(2):
        values = [a + b for a, b in zip(residual[row], delta[row], strict=True)]
        root = math.sqrt(math.fsum(v * v for v in values) / 6 + 0.25)
        assert np.allclose(total[row], values, rtol=1e-15)
        assert np.allclose(normed[row], [v / root * g for v, g in zip(values, gamma, strict=True)] * 2, rtol=1e-14)
