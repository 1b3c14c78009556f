"""Products of many tokens in float64: those of the GEMV, with sums that are scaled every 32 inputs."""

from __future__ import annotations

from kernels.kernel import F64
from kernels.reference import gemv as single
from kernels.reference.gemv import Values

RUN_INPUTS = 32  # that share an f32 sum before it is scaled, whatever the group size


def gemm(x: Values, w: F64, *, bias: Values | None = None, residual: Values | None = None) -> F64:
    """x [M, K] times w [N, K], plus bias [N] and residual [M, N]: f64 [M, N]."""
    product = single.gemv(x, w, bias=bias)
    return product if residual is None else single.gemv_residual(x, w, residual, bias=bias)


gemm_swiglu = single.gemv_swiglu
gemm_qkv_rope_kv = single.gemv_qkv_rope_kv


def accumulation(x: Values, w: F64, *, bias: Values | None = None) -> F64:
    """Largest error of the f32 sums, as `kernels.reference.gemv.accumulation` derives it for groups of 32.

    Every 32 inputs are two mma, whose sum enters the total with one fma; there are no warps to add up, only the bias.
    """
    return single.accumulation(x, w, RUN_INPUTS, bias=bias)
