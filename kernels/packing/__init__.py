"""Four-bit integer weights: one canonical form, its digest, and lossless conversion to and from stored layouts.

    weight = unpack(tensors, "autoawq-gemm", (out_features, in_features), 128)
    tensors = pack(weight, "matmulnbits")
"""

from __future__ import annotations

from kernels.packing.digest import WeightDigest
from kernels.packing.formats import FORMATS, pack, unpack
from kernels.packing.integers import IntWeight

__all__ = ["FORMATS", "IntWeight", "WeightDigest", "pack", "unpack"]
