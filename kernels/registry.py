"""All kernels by name; each family's launch module brings its own."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from kernels.kernel import Kernel
from kernels.launch import attention, dequantize, embed, gemm, gemv, head, kv, norm, resize, sample

FAMILIES: tuple[tuple[Kernel, ...], ...] = (
    attention.KERNELS,
    dequantize.KERNELS,
    embed.KERNELS,
    gemm.KERNELS,
    gemv.KERNELS,
    head.KERNELS,
    kv.KERNELS,
    norm.KERNELS,
    resize.KERNELS,
    sample.KERNELS,
)

KERNELS: Mapping[str, Kernel] = MappingProxyType({kernel.symbol: kernel for family in FAMILIES for kernel in family})
SOURCES: Mapping[str, str] = MappingProxyType(
    {entry: kernel.source for kernel in KERNELS.values() for entry in kernel.entries}
)
