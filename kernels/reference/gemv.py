"""Products with int4 weights in float64, on exactly dequantised weights, and how far f32 sums may be from them.

Weights of the references have their rows in natural order (gate above up; q above k above v), not in that of the tiles.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kernels.kernel import F64
from kernels.packing.integers import IntWeight

ULP = 2.0**-24  # half the distance of two f32 values near 1
MMA_INPUTS = 16
MMA_ERROR = 2 * (MMA_INPUTS + 2)  # in ULP of the sum of magnitudes; see accumulation
LAST_SUMS = 8 + 1  # over the warps, and the bias
SILU_SLOPE = 1.1  # largest derivative of silu is 1.0998
TINY = 2.0**-120

Values = npt.NDArray[np.floating]


def dequantized(weight: IntWeight) -> F64:
    """(q - z)·s in float64, which holds every one exactly."""
    steps = weight.q.astype(np.float64) - np.repeat(weight.zeros, weight.group_size, axis=1)
    return steps * np.repeat(weight.scales.astype(np.float64), weight.group_size, axis=1)


def gemv(x: Values, w: F64, *, bias: Values | None = None) -> F64:
    """x [M, K] times w [N, K], plus bias [N]: f64 [M, N]."""
    product: F64 = x.astype(np.float64) @ w.T
    return product if bias is None else product + bias.astype(np.float64)


def gemv_residual(x: Values, w: F64, residual: Values, *, bias: Values | None = None) -> F64:
    """residual [M, N] plus the product."""
    return residual.astype(np.float64) + gemv(x, w, bias=bias)


def gemv_swiglu(x: Values, w: F64) -> F64:
    """silu(x·gateᵀ) times x·upᵀ, w [2·F, K] = gate above up: f64 [M, F]."""
    gate, up = np.split(gemv(x, w), 2, axis=1)
    with np.errstate(over="ignore"):
        y: F64 = gate / (1.0 + np.exp(-gate)) * up
    return y


def gemv_qkv_rope_kv(
    x: Values, w: F64, bias: Values | None, rope: Values, pos: int, *, heads: int, kv_heads: int
) -> tuple[F64, F64, F64]:
    """q [M, heads, D], k and v [M, kv_heads, D] of tokens at positions pos, pos + 1, ...; rope [positions, D/2, 2]."""
    head_dim = 2 * rope.shape[1]
    product = gemv(x, w, bias=bias).reshape(x.shape[0], heads + 2 * kv_heads, head_dim)
    turned = turn(product[:, : heads + kv_heads], rope[pos : pos + x.shape[0]].astype(np.float64))
    return turned[:, :heads], turned[:, heads:], product[:, heads + kv_heads :]


def turn(values: F64, table: F64) -> F64:
    """Rotate dims (d, d + D/2) of values [M, H, D] by table [M, D/2, 2] = (cos, sin)."""
    first, second = np.split(values, 2, axis=2)
    cos, sin = table[:, None, :, 0], table[:, None, :, 1]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=2)


def accumulation(x: Values, w: F64, group_size: int, *, bias: Values | None = None) -> F64:
    """Largest error of the f32 sums of x·wᵀ + bias, f64 [M, N], relative to the sum of magnitudes A = |x|·|w|ᵀ.

    Inputs of an mma are exact, and so are its products. It adds 16 of them to its accumulator: a tensor core cuts each
    of the 17 terms off at 2^-23 of the largest and the sum once more, at most 18·2^-23 = 36 ULP of the magnitudes in
    the group (in sequence it would be 16). A group has group/16 of them, its scale enters with one fma per group, and
    at the end the sums of up to 8 warps and the bias are added.
    """
    magnitudes = np.abs(x.astype(np.float64)) @ np.abs(w).T
    groups = w.shape[1] // group_size
    errors = MMA_ERROR * (group_size // MMA_INPUTS) + groups + LAST_SUMS
    bound: F64 = errors * ULP * (magnitudes if bias is None else magnitudes + np.abs(bias.astype(np.float64)))
    return bound


def rounding(values: F64, error: F64, dtype: str) -> F64:
    """``error`` of a value plus half an ulp of the type that it is rounded to; f32: half an ulp of a last addition."""
    largest = np.maximum(np.abs(values) + error, TINY)
    bits, lowest = {"f16": (11, -24), "bf16": (8, -133), "f32": (24, -149)}[dtype]
    exponent = np.floor(np.log2(largest)) + 1
    bound: F64 = error + np.exp2(np.maximum(exponent - bits, lowest) - 1)
    return bound


def swiglu_bound(x: Values, w: F64, group_size: int, dtype: str) -> F64:
    """For :func:`gemv_swiglu`: errors of gate and up, through silu's slope; then of silu itself, and the rounding.

    __expf is within 2 + 1.173·|gate| ulp (of 2^-23), which 1 / (1 + e) weakens by e / (1 + e); one addition, the
    division and two products are 4 ULP.
    """
    gate, up = np.split(gemv(x, w), 2, axis=1)
    gate_error, up_error = np.split(accumulation(x, w, group_size), 2, axis=1)
    y = gemv_swiglu(x, w)
    with np.errstate(over="ignore"):
        weakened = 1.0 / (1.0 + np.exp(gate))
    own = (weakened * (2 + 1.173 * np.abs(gate)) * 2 + 4) * ULP * np.abs(y)
    silu = np.divide(y, up, out=np.zeros_like(y), where=up != 0)
    carried = SILU_SLOPE * gate_error * (np.abs(up) + up_error) + np.abs(silu) * up_error
    return rounding(y, own + carried + TINY, dtype)


def qkv_bounds(
    x: Values,
    w: F64,
    bias: Values | None,
    rope: Values,
    pos: int,
    group_size: int,
    dtype: str,
    *,
    heads: int,
    kv_heads: int,
) -> tuple[F64, F64, F64]:
    """For :func:`gemv_qkv_rope_kv`: a rotation carries both errors and adds two products and a sum (3 ULP)."""
    head_dim = 2 * rope.shape[1]
    shape = (x.shape[0], heads + 2 * kv_heads, head_dim)
    rotated = heads + kv_heads
    product = np.abs(gemv(x, w, bias=bias)).reshape(shape)
    error = accumulation(x, w, group_size, bias=bias).reshape(shape)
    table = np.abs(rope[pos : pos + x.shape[0]].astype(np.float64))
    first, second = np.split(error[:, :rotated] + 3 * ULP * product[:, :rotated], 2, axis=2)
    cos, sin = table[:, None, :, 0], table[:, None, :, 1]
    carried = np.concatenate([first * cos + second * sin, second * cos + first * sin], axis=2)
    q, k, v = gemv_qkv_rope_kv(x, w, bias, rope, pos, heads=heads, kv_heads=kv_heads)
    return (
        rounding(q, carried[:, :heads], dtype),
        rounding(k, carried[:, heads:], dtype),
        rounding(v, error[:, rotated:], dtype),
    )
