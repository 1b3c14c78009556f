"""A decoder on integers as its checkpoint stores it: AutoAWQ gemm tensors and what config.json says about them."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kernels import packing
from kernels.packing import IntWeight
from models.int4 import FULL_BITS, Int4Linear
from runtime.errors import OutputError

FORMAT = "autoawq-gemm"
_BUFFERS = ("q", "zeros", "scales")
Parts = tuple[dict[str, Tensor], "dict[str, Any] | None", dict[str, Any]]


def packed_parts(model: Any, tensors: Mapping[str, Tensor]) -> Parts:
    """(tensors as stored, quantization_config or None, quantization.json) of a model's decoder.

    ``tensors``: of its state dict; without integers they are stored as they are. Linears on integers become AutoAWQ
    gemm, in groups of one size that divides those of all: this changes no weight. A head on integers, which that form
    does not know, is stored as the floats that it computes with, or not at all where it is tied to the embeddings.
    Raises OutputError for a linear that the form cannot hold.
    """
    llm, note = model.get_llm(), dict(model.quantization_note)
    held = {
        name: _holding(module, name, tensors)
        for name, module in llm.named_modules()
        if isinstance(module, Int4Linear) and f"{name}.q" in tensors
    }
    if not held:
        return dict(tensors), None, note
    kept = {name: t for name, t in tensors.items() if name.endswith(".bias") or name.rpartition(".")[0] not in held}
    note = {"head_bits": model.head_bits} | note
    head = held.pop("lm_head", None)
    if head is not None and not llm.config.tie_word_embeddings:
        kept["lm_head.weight"] = head.weight.to(llm.get_input_embeddings().weight.dtype)
        note["head_bits"] = FULL_BITS
    group_size = math.gcd(*(module.group_size for module in held.values()))
    for name, module in held.items():
        kept |= _gemm(name, _in_groups_of(module.integers(), group_size))
    others = {name for name, module in llm.named_modules() if isinstance(module, nn.Linear)}
    settings = packing.quantization_config(FORMAT, group_size, sorted(others | {"lm_head"}))
    return kept, settings, note | {"method": model.quantization, "group_size": group_size}


def _holding(module: Int4Linear, name: str, tensors: Mapping[str, Tensor]) -> Int4Linear:
    """The linear on the integers that are to be saved, which need not be its own."""
    other = copy.copy(module)
    other._buffers = {part: tensors[f"{name}.{part}"] for part in _BUFFERS}
    return other


def _gemm(name: str, weight: IntWeight) -> dict[str, Tensor]:
    try:
        return {f"{name}.{part}": torch.from_numpy(array) for part, array in packing.pack(weight, FORMAT).items()}
    except ValueError as problem:
        raise OutputError(f"{name} cannot be stored as {FORMAT}: {problem}", hint="save the full weights") from problem


def _in_groups_of(weight: IntWeight, group_size: int) -> IntWeight:
    """The same weight in smaller groups: each gets its old group's zero point and scale."""
    times = weight.group_size // group_size
    zeros, scales = (np.repeat(array, times, axis=1) for array in (weight.zeros, weight.scales))
    return IntWeight(weight.q, zeros, scales, group_size)
