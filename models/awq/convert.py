"""Packed linears of a whole checkpoint from one layout into another, without loss: names in, names out.

    tensors = convert_tensors(load_file("model.safetensors"), "autoawq-gemm", "gptq", group_size=128)

The settings that belong to the result come from ``kernels.packing.quantization_config``.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from kernels import packing
from kernels.packing import IntWeight
from models.packed import unpack_tensors
from runtime.errors import ExportError

GEMV_FAST = "autoawq-gemv_fast"  # llm-awq v2 with one tensor under another name
MATMULNBITS = "matmulnbits"  # ONNX Runtime's operator: B, scales, zero_points
LAYOUTS = (*packing.CHECKPOINT_FORMATS, GEMV_FAST, MATMULNBITS)
WHOLE_ROW = -1
_MATMULNBITS_NAMES = frozenset({"B", "scales", "zero_points"})


def convert_tensors(
    tensors: Mapping[str, Tensor], source: str, target: str, *, group_size: int = 128
) -> dict[str, Tensor]:
    """``tensors`` of a checkpoint with each packed linear in the layout ``target``; everything else as it is.

    ``source``, ``target``: of ``LAYOUTS``. ``group_size``: the checkpoint's, -1 for whole rows. The integers, zero
    points and f16 scales are the same bit for bit. Raises ExportError that names the linear: a tensor that is missing,
    misshapen or without a meaning, activation order, and what ``target`` cannot hold (see the layouts' own limits).
    """
    for name in (source, target):
        if name not in LAYOUTS:
            raise ExportError(f"unknown layout {name!r}", hint="one of " + ", ".join(LAYOUTS))
    found, linears = _divide(tensors, source)
    if not linears:
        raise ExportError(f"no tensor belongs to a linear in the layout {source}", hint="check the checkpoint's layout")
    for linear, parts in linears.items():
        try:
            converted = _stored(_integers(parts, source, group_size), target)
        except ValueError as problem:
            raise ExportError(f"{linear}: {problem}", hint=f"from {source} to {target}") from problem
        found |= {f"{linear}.{last}": tensor for last, tensor in converted.items()}
    return found


def _divide(tensors: Mapping[str, Tensor], source: str) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    ours = _MATMULNBITS_NAMES if source == MATMULNBITS else packing.TENSOR_NAMES
    others: dict[str, Tensor] = {}
    linears: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        linear, _, last = name.rpartition(".")
        if last in ours:
            linears.setdefault(linear, {})[last] = tensor
        else:
            others[name] = tensor
    return others, linears


def _integers(parts: Mapping[str, Tensor], layout: str, group_size: int) -> IntWeight:
    shape = _shape(parts, layout)
    size = shape[1] if group_size == WHOLE_ROW else group_size
    if layout == MATMULNBITS:
        return packing.unpack({name: tensor.numpy() for name, tensor in parts.items()}, layout, shape, size)
    return unpack_tensors(parts, "llm-awq-v2" if layout == GEMV_FAST else layout, shape, size)


def _stored(weight: IntWeight, layout: str) -> dict[str, Tensor]:
    arrays = packing.pack(weight, "llm-awq-v2" if layout == GEMV_FAST else layout)
    names = {ours: theirs for theirs, ours in packing.ALIASES["llm-awq-v2"].items()} if layout == GEMV_FAST else {}
    return {names.get(name, name): torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}


def _shape(parts: Mapping[str, Tensor], layout: str) -> tuple[int, int]:
    """(N, K) of a linear from the tensor that holds its integers. Raises ValueError where it is missing."""
    name = {"compressed-tensors": "weight_packed", MATMULNBITS: "B"}.get(layout, "qweight")
    if name not in parts:
        raise ValueError(f"tensor {name!r} is missing; there are {sorted(parts)}")
    rows, columns, *rest = parts[name].shape
    if layout == "autoawq-gemm":
        return 8 * columns, rows
    if layout in ("llm-awq-v2", GEMV_FAST):
        return 4 * rows, columns
    if layout in ("gptq", "gptq-v2"):
        return columns, 8 * rows
    if layout == MATMULNBITS:
        return rows, columns * 2 * rest[0]
    return rows, 8 * columns
