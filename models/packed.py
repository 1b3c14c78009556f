"""Packed linears of a quantised checkpoint: what is said about them, which tensors they are, modules in their place.

Reads what ``kernels.packing`` knows: AutoAWQ gemm, gemv and gemv_fast, llm-awq v2, GPTQ without activation order,
compressed-tensors pack-quantized. The stored integers are used as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kernels import packing
from kernels.packing import IntWeight, QuantizedForm
from models.int4 import FULL_BITS, Int4Linear
from models.lazy_parameters import give_memory
from models.weights import Rename, TensorOnDisk, first_and_count, load_tensors, read_json, tensors_of, weight_files
from runtime.errors import ExportError

NOTE = "quantization.json"  # what export.quantize writes about a checkpoint, beside its config.json
HEAD_BITS = (4, 8, FULL_BITS)
# Where AutoAWQ and GPTQ wrote their settings before these moved to config.json.
_OLDER_FILES = ("quant_config.json", "quantize_config.json")
_SUPPORTED = "four-bit AWQ, GPTQ without activation order and compressed-tensors pack-quantized can be read"
Linears = dict[str, dict[str, TensorOnDisk]]


@dataclass(frozen=True, slots=True)
class Quantization:
    """What a checkpoint says about its decoder's weights.

    ``form``: how packed linears are stored, None when nothing is said. ``method``: what chose the integers ("awq",
    "gptq", ...; "compressed-tensors" where nobody says more), "none" for full weights. ``head_bits``: of the LM head.
    ``note``: all of quantization.json.
    """

    form: QuantizedForm | None = None
    method: str = "none"
    head_bits: int = 4
    note: Mapping[str, Any] = field(default_factory=dict)


def read_quantization(folder: Path, root: Path | None = None) -> Quantization:
    """What ``folder``/config.json and ``root``/quantization.json say (``root`` is ``folder`` without it).

    Raises ExportError naming the setting that cannot be read.
    """
    settings = read_json(folder / "config.json").get("quantization_config")
    for name in _OLDER_FILES:
        if settings is None and (folder / name).is_file():
            settings = read_json(folder / name)
    note = _read_note((root or folder) / NOTE)
    if settings is None:
        return Quantization(head_bits=note.get("head_bits", 4), note=note)
    try:
        form = packing.read_quantization_config(settings)
    except ValueError as problem:
        raise ExportError(f"{folder}: quantization_config: {problem}", hint=_SUPPORTED) from problem
    return Quantization(form, str(note.get("method", form.method)), note.get("head_bits", 4), note)


def _read_note(path: Path) -> dict[str, Any]:
    note = read_json(path) if path.is_file() else {}
    if note.get("head_bits", 4) not in HEAD_BITS:
        raise ExportError(f"{path}: head_bits is {note['head_bits']!r}", hint=f"one of {HEAD_BITS}")
    return note


def load_packed(
    module: nn.Module,
    directory: Path,
    form: QuantizedForm | None,
    *,
    named: str,
    rename: Rename | None = None,
    may_lack: frozenset[str] = frozenset(),
) -> bool:
    """``load_strict`` for weights whose linears may be packed: those become ``Int4Linear``. Says whether any was.

    ``module`` may be made in ``WithoutMemory``: the full weights of packed linears then never have any.
    ``form`` None: packed tensors are told apart by themselves, as llm-awq's must be. Raises ExportError as
    ``load_strict`` does, and for packed tensors that are missing, misshapen, reordered or stand for no integers.
    """
    plain, packed = _divide(tensors_of(weight_files(directory)))
    if form is not None and not packed:
        raise ExportError(
            f"{directory}: quantization_config says {form.method}, but no linear is packed",
            hint="take quantization_config out of config.json, or copy the quantised weights",
        )
    linears = _targets(module, packed, plain, named, rename)
    give_memory(module, {f"{name}.weight" for name in linears})
    absent = may_lack | {f"{name}.weight" for name in linears}
    load_tensors(module, plain, named=named, rename=rename, may_lack=absent)
    for name, tensors in linears.items():
        linear: Any = module.get_submodule(name)
        integers = read_integers(f"{directory}: {name}", tensors, form, tuple(linear.weight.shape))
        module.set_submodule(name, Int4Linear(integers, linear.bias))
    return bool(linears)


def _divide(stored: Mapping[str, TensorOnDisk]) -> tuple[dict[str, TensorOnDisk], Linears]:
    """Tensors of their own, and those of packed linears by the linear's name on disk."""
    plain: dict[str, TensorOnDisk] = {}
    packed: Linears = {}
    for name, tensor in stored.items():
        linear, _, last = name.rpartition(".")
        if last in packing.TENSOR_NAMES:
            packed.setdefault(linear, {})[last] = tensor
        else:
            plain[name] = tensor
    return plain, packed


def _targets(
    module: nn.Module, packed: Linears, plain: Mapping[str, TensorOnDisk], named: str, rename: Rename | None
) -> Linears:
    """The packed linears by their name in ``module``."""
    known = {name for name, child in module.named_modules() if isinstance(child, nn.Linear)}
    found: Linears = {}
    unknown = []
    for linear, tensors in packed.items():
        weight = f"{linear}.weight"
        target = rename(weight) if rename else weight
        if target is None:
            continue
        if weight in plain:
            raise ExportError(
                f"the {named}'s weights hold {weight!r} and packed tensors of it", hint="keep one of them"
            )
        name = target.removesuffix(".weight")
        if name not in known:
            unknown += [f"{linear}.{last}" for last in tensors]
        found[name] = tensors
    if unknown:
        raise ExportError(f"the {named}'s weights hold {first_and_count(unknown)}, which the {named} does not have")
    return found


def read_integers(
    where: str, tensors: Mapping[str, TensorOnDisk], form: QuantizedForm | None, shape: tuple[int, int]
) -> IntWeight:
    """The integers of one linear of ``shape`` (N, K). Raises ExportError that begins with ``where``."""
    try:
        return _unpack({name: tensor.read() for name, tensor in tensors.items()}, form, shape)
    except ValueError as problem:
        raise ExportError(f"{where}: {problem}", hint=_SUPPORTED) from problem


def _unpack(tensors: dict[str, Tensor], form: QuantizedForm | None, shape: tuple[int, int]) -> IntWeight:
    if form is None:
        kinds = {name: (_kind(tensor), tuple(tensor.shape)) for name, tensor in tensors.items()}
        found = packing.find_layout(kinds, shape)
        if found is None:
            raise ValueError(f"its tensors {sorted(tensors)} are of no known layout for a matrix {list(shape)}")
        layout, group_size = found
    else:
        layout, group_size = form.format, form.group_size or shape[1]
    return unpack_tensors(tensors, layout, shape, group_size)


def unpack_tensors(tensors: Mapping[str, Tensor], layout: str, shape: tuple[int, int], group_size: int) -> IntWeight:
    """The integers of a linear of ``shape`` (N, K) in a layout of ``kernels.packing.CHECKPOINT_FORMATS``.

    ``tensors`` as the checkpoint names them, without the linear's name. Raises ValueError for what the layout does not
    have, has in another shape, or gives no meaning.
    """
    aliases = packing.ALIASES.get(layout, {})
    arrays = {aliases.get(name, name): as_array(tensor) for name, tensor in tensors.items()}
    expected = packing.stored_tensors(layout, shape, group_size)
    if left := sorted(set(arrays) - set(expected)):
        raise ValueError(f"{left[0]!r} has no meaning in the layout {layout}")
    return packing.unpack(arrays, layout, shape, group_size)


def as_array(tensor: Tensor) -> np.ndarray[Any, Any]:
    """A stored tensor for ``kernels.packing``: integers as they are, wider floats as f16 where that is exact.

    Raises ValueError for floats that f16 does not hold.
    """
    if tensor.is_floating_point() and tensor.dtype != torch.float16:
        return packing.exact_f16(tensor.float().numpy())
    return tensor.numpy()


def _kind(tensor: Tensor) -> str:
    return "float" if tensor.is_floating_point() else str(tensor.dtype).removeprefix("torch.")
