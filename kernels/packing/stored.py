"""What the tensors of one linear are called in each stored layout, and of which kind and shape they are.

tensors = stored_tensors("autoawq-gemm", (4096, 11008), 128)
tensors["qweight"] == StoredTensor("int32", (11008, 512), required=True)

A checkpoint has them as ``<linear>.<name>``; a bias stays ``<linear>.bias`` in every layout.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from kernels.packing.awq import zero_words

Kind = Literal["int16", "int32", "int64", "float"]


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a linear. ``kind`` "float": f16, or a wider type whose values f16 holds (:func:`exact_f16`)."""

    kind: Kind
    shape: tuple[int, ...]
    required: bool = True


Specs = dict[str, StoredTensor]


def _gemm(n: int, k: int, groups: int, group_size: int) -> Specs:
    return {
        "qweight": StoredTensor("int32", (k, n // 8)),
        "qzeros": StoredTensor("int32", (groups, n // 8)),
        "scales": StoredTensor("float", (groups, n)),
    }


def _gemv(n: int, k: int, groups: int, group_size: int) -> Specs:
    words = zero_words(groups, group_size)
    return {
        "qweight": StoredTensor("int32", (n, k // 8)),
        "qzeros": StoredTensor("int32", (n, words)),
        "scales": StoredTensor("float", (n, 8 * words)),
    }


def _llm_awq(n: int, k: int, groups: int, group_size: int) -> Specs:
    rows = 8 * zero_words(groups, group_size)
    return {
        "qweight": StoredTensor("int16", (n // 4, k)),
        "scales": StoredTensor("float", (rows, n)),
        "scaled_zeros": StoredTensor("float", (rows, n)),
    }


def _gptq(n: int, k: int, groups: int, group_size: int) -> Specs:
    return {
        "qweight": StoredTensor("int32", (k // 8, n)),
        "qzeros": StoredTensor("int32", (groups, n // 8)),
        "scales": StoredTensor("float", (groups, n)),
        "g_idx": StoredTensor("int32", (k,), required=False),
    }


def _compressed(n: int, k: int, groups: int, group_size: int) -> Specs:
    return {
        "weight_packed": StoredTensor("int32", (n, k // 8)),
        "weight_scale": StoredTensor("float", (n, groups)),
        "weight_zero_point": StoredTensor("int32", (n // 8, groups), required=False),
        "weight_shape": StoredTensor("int64", (2,)),
    }


_SPECS: Mapping[str, Callable[[int, int, int, int], Specs]] = MappingProxyType(
    {
        "autoawq-gemm": _gemm,
        "autoawq-gemv": _gemv,
        "llm-awq-v2": _llm_awq,
        "gptq": _gptq,
        "gptq-v2": _gptq,
        "compressed-tensors": _compressed,
    }
)

# The layouts that checkpoints are stored in: all of FORMATS but those of an engine.
CHECKPOINT_FORMATS = tuple(_SPECS)

# AutoAWQ's gemv_fast calls a tensor of llm-awq v2 by another name: format -> its name in the checkpoint -> ours.
ALIASES: Mapping[str, Mapping[str, str]] = MappingProxyType({"llm-awq-v2": {"qzeros": "scaled_zeros"}})

# Any name that a tensor of a quantised linear ends in, of whatever layout, aliases and ``weight_g_idx`` (inputs that
# are reordered, which is refused) included.
TENSOR_NAMES = frozenset(
    {"weight_g_idx", *(name for table in ALIASES.values() for name in table)}
    | {name for specs in _SPECS.values() for name in specs(8, 128, 1, 128)}
)


def stored_tensors(format: str, shape: tuple[int, int], group_size: int) -> Specs:
    """The tensors of a linear of ``shape`` (N, K) in a layout of :data:`CHECKPOINT_FORMATS`, by name without prefix.

    Raises ValueError for another layout, and for a group size that the layout or K does not allow.
    """
    if format not in _SPECS:
        raise ValueError(f"unknown checkpoint layout {format!r}; known: {', '.join(CHECKPOINT_FORMATS)}")
    n, k = shape
    if group_size < 1 or k % group_size:
        raise ValueError(f"groups of {group_size} do not divide its {k} inputs")
    return _SPECS[format](n, k, k // group_size, group_size)


def find_layout(tensors: Mapping[str, tuple[str, tuple[int, ...]]], shape: tuple[int, int]) -> tuple[str, int] | None:
    """(layout, group size) of a linear of ``shape`` (N, K) by its tensors alone, or None when nothing fits.

    tensors: name without prefix -> (kind, shape), kind "float" for every float type. For files that say nothing of
    themselves, as llm-awq's. Of the two GPTQ versions, which look alike, the first is meant. Groups of 128, 64 and 32
    are told apart.
    """
    for format in CHECKPOINT_FORMATS:
        names = ALIASES.get(format, {})
        found = {names.get(name, name): what for name, what in tensors.items()}
        for group_size in (128, 64, 32):
            if shape[1] % group_size == 0 and _matches(found, stored_tensors(format, shape, group_size)):
                return format, group_size
    return None


def _matches(found: Mapping[str, tuple[str, tuple[int, ...]]], specs: Specs) -> bool:
    if not found.keys() <= specs.keys():
        return False
    return all(
        (found[name] == (spec.kind, spec.shape)) if name in found else not spec.required for name, spec in specs.items()
    )
