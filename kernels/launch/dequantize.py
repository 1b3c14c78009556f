"""Launches the expansion of an int4 weight to 16-bit floats (csrc/dequantize.cu)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kernels.arrays import DeviceArray, check_array
from kernels.driver.protocol import Stream
from kernels.kernel import Kernel
from kernels.launch.products import entries
from kernels.launch.weights import T16Weight
from kernels.packing.t16 import steps_of
from kernels.reference.dequantize import dequantize as reference

if TYPE_CHECKING:
    from kernels.loading import Kernels

WARPS = 4  # per block, each one tile


def dequantize(kernels: Kernels, stream: Stream, w: T16Weight, out: DeviceArray) -> None:
    """out = (q - z) · s, each product rounded once: out T [N, K], T f16 or bf16, rows in the order of the weight.

    In f16 these are the weights that AutoAWQ computes with, bit for bit. Raises ArrayError.
    """
    check_array("out", out, ("f16", "bf16"), (w.n, w.k))
    kernels.launch(
        f"dequantize_g{w.group_size}_{out.dtype}",
        (w.tiles, -(-steps_of(w.k) // WARPS), 1),
        (32 * WARPS, 1, 1),
        0,
        stream,
        "PPPPii",
        w.qw.ptr,
        w.sc.ptr,
        w.zp.ptr,
        out.ptr,
        w.n,
        w.k,
    )


KERNELS = (Kernel("dequantize", "dequantize.cu", entries("dequantize"), dequantize, reference),)
