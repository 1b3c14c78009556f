"""Four-bit integer weights: one canonical form, its digest, and lossless conversion to and from stored layouts.

weight = unpack(tensors, "autoawq-gemm", (out_features, in_features), 128)
tensors = pack(weight, "matmulnbits")
weight = quantize_nearest(floats, 128)
"""

from __future__ import annotations

from kernels.packing.digest import WeightDigest
from kernels.packing.formats import FORMATS, pack, unpack
from kernels.packing.integers import IntWeight
from kernels.packing.nearest import quantize_nearest

__all__ = ["FORMATS", "IntWeight", "WeightDigest", "pack", "quantize_nearest", "unpack"]
