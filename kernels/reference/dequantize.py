"""Int4 weights as 16-bit floats."""

from __future__ import annotations

import numpy as np

from kernels.arrays import Activation, from_bf16, to_bf16
from kernels.kernel import F64
from kernels.packing.integers import IntWeight
from kernels.reference.gemv import dequantized


def dequantize(weight: IntWeight, dtype: Activation) -> F64:
    """(q - z)·s rounded once to f16 or bf16, as f64 [N, K]; the product is exact in f32."""
    exact = dequantized(weight)
    return (
        from_bf16(to_bf16(exact)).astype(np.float64) if dtype == "bf16" else exact.astype(np.float16).astype(np.float64)
    )
