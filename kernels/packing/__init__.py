"""Integer weights: one canonical form, its digest, and lossless conversion to and from stored layouts.

weight = unpack(tensors, "autoawq-gemm", (out_features, in_features), 128)
tensors = pack(weight, "matmulnbits")
weight = quantize_nearest(floats, 128)

What checkpoints call those tensors, and how they say which layout theirs are: :func:`stored_tensors`,
:func:`read_quantization_config`, :func:`quantization_config`.
"""

from __future__ import annotations

from kernels.packing.digest import WeightDigest
from kernels.packing.formats import FORMATS, pack, unpack
from kernels.packing.integers import IntWeight, exact_f16
from kernels.packing.nearest import quantize_nearest
from kernels.packing.quantization_config import QuantizedForm, quantization_config, read_quantization_config
from kernels.packing.stored import (
    ALIASES,
    CHECKPOINT_FORMATS,
    TENSOR_NAMES,
    StoredTensor,
    find_layout,
    stored_tensors,
)
from kernels.packing.t16 import gate_up_order, qkv_order, reordered, split_int8

__all__ = [
    "ALIASES",
    "CHECKPOINT_FORMATS",
    "FORMATS",
    "TENSOR_NAMES",
    "IntWeight",
    "QuantizedForm",
    "StoredTensor",
    "WeightDigest",
    "exact_f16",
    "find_layout",
    "gate_up_order",
    "pack",
    "qkv_order",
    "quantization_config",
    "quantize_nearest",
    "read_quantization_config",
    "reordered",
    "split_int8",
    "stored_tensors",
    "unpack",
]
