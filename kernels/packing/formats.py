"""The table of stored layouts, and the two functions that go through it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from kernels.packing.awq import pack_gemm, pack_gemv, pack_llm_awq, unpack_gemm, unpack_gemv, unpack_llm_awq
from kernels.packing.compressed_tensors import pack_compressed, unpack_compressed
from kernels.packing.gptq import pack_gptq, pack_gptq_v2, unpack_gptq, unpack_gptq_v2
from kernels.packing.integers import BITS, IntWeight, Tensors
from kernels.packing.matmulnbits import pack_matmulnbits, unpack_matmulnbits
from kernels.packing.t16 import pack_t16, unpack_t16

DEFAULT_BITS = 4
WIDE_FORMAT = "matmulnbits"


@dataclass(frozen=True, slots=True)
class Layout:
    """Both directions of one stored layout."""

    pack: Callable[[IntWeight], Tensors]
    unpack: Callable[[Tensors, tuple[int, int], int], IntWeight]


FORMATS: Mapping[str, Layout] = MappingProxyType(
    {
        "matmulnbits": Layout(pack_matmulnbits, unpack_matmulnbits),
        "autoawq-gemm": Layout(pack_gemm, unpack_gemm),
        "autoawq-gemv": Layout(pack_gemv, unpack_gemv),
        "llm-awq-v2": Layout(pack_llm_awq, unpack_llm_awq),
        "gptq": Layout(pack_gptq, unpack_gptq),
        "gptq-v2": Layout(pack_gptq_v2, unpack_gptq_v2),
        "compressed-tensors": Layout(pack_compressed, unpack_compressed),
        "t16": Layout(pack_t16, unpack_t16),
    }
)


def pack(weight: IntWeight, format: str) -> Tensors:
    """Stores a weight in the named layout of ``FORMATS``: tensor name → array, as the layout's checkpoints name them.

    Raises ValueError for an unknown name and for a weight that the layout cannot hold without loss: each layout's own
    function says what it holds. Eight bits are held by "matmulnbits" alone.
    """
    layout = _layout(format)
    _check_bits(format, weight.bits)
    return layout.pack(weight)


def unpack(
    tensors: Tensors, format: str, shape: tuple[int, int], group_size: int, bits: int = DEFAULT_BITS
) -> IntWeight:
    """Reads a weight of ``shape`` (N, K) from the named layout; exact inverse of :func:`pack`.

    Raises ValueError for an unknown name, a missing tensor, a wrong dtype or shape, or values without a meaning.
    """
    n, k = shape
    if n < 1 or k < 1 or group_size < 1 or k % group_size:
        raise ValueError(f"shape {shape} cannot be divided into groups of {group_size}")
    layout = _layout(format)
    _check_bits(format, bits)
    if bits != DEFAULT_BITS:
        return unpack_matmulnbits(tensors, shape, group_size, bits)
    return layout.unpack(tensors, shape, group_size)


def _layout(name: str) -> Layout:
    try:
        return FORMATS[name]
    except KeyError:
        raise ValueError(f"unknown layout {name!r}; known: {', '.join(FORMATS)}") from None


def _check_bits(format: str, bits: int) -> None:
    if bits != DEFAULT_BITS and (format != WIDE_FORMAT or bits not in BITS):
        raise ValueError(f"layout {format!r} does not hold {bits} bits; {WIDE_FORMAT!r} holds 4 and 8, all others 4")
