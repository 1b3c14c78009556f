"""Linears that a checkpoint stores as integers: found and checked by their headers, read one at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from export.decoder.quantization import FORM_HINT
from export.decoder.quantize import GROUP_SIZES
from export.decoder.safetensors_file import ITEM_BYTES
from export.decoder.weight_files import WeightFiles
from kernels.packing import (
    ALIASES,
    TENSOR_NAMES,
    IntWeight,
    QuantizedForm,
    StoredTensor,
    exact_f16,
    find_layout,
    stored_tensors,
    unpack,
)
from runtime.bundle.tensor_header import TensorInfo
from runtime.errors import ExportError

KINDS: Mapping[str, str] = MappingProxyType({"I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64"})


@dataclass(frozen=True, slots=True)
class Stem:
    """A linear's canonical name, what its tensors begin with in the files (``….q_proj``), and its shape."""

    name: str
    stored: str
    n: int
    k: int


class StoredIntegers:
    """The linears of a checkpoint that are integers: all of the layers' or none, and perhaps the head.

    Raises ExportError: some linears of the layers only, a layout or group size that cannot be read, tensors that are
    missing, left over or of another kind or shape than the layout's.
    """

    def __init__(self, files: WeightFiles, form: QuantizedForm | None, layers: Sequence[Stem], head: Stem) -> None:
        self._files = files
        self._tensors = {stem.name: self._found(stem) for stem in (*layers, head)}
        packed = [stem for stem in layers if self._tensors[stem.name]]
        floats = [stem for stem in layers if not self._tensors[stem.name]]
        if packed and floats:
            raise _mixed(files.folder, form, packed, floats)
        if form is not None and not packed:
            message = (
                f"{files.folder}: quantization_config says {form.method}, but {layers[0].stored!r} has no integers"
            )
            raise ExportError(message, hint=FORM_HINT)
        self.form = form if form is not None or not packed else self._guess(packed[0])
        stems = [stem for stem in (*layers, head) if self._tensors[stem.name]]
        if stems and self.form is None:
            raise ExportError(
                f"{files.folder}: {stems[0].stored} is stored as integers, the layers not", hint=FORM_HINT
            )
        self._group_size = self._check_group_size() if self.form is not None else 0
        self._stems = {stem.name: stem for stem in stems}
        for stem in stems:
            self._check(stem)

    @property
    def group_size(self) -> int | None:
        """Weights that share a scale; None when nothing is stored as integers."""
        return self._group_size or None

    def __contains__(self, name: str) -> bool:
        return name in self._stems

    def names(self) -> frozenset[str]:
        """All tensors of these linears, by their names in the files; biases apart."""
        return frozenset(f"{stem.stored}.{name}" for stem in self._stems.values() for name in self._tensors[stem.name])

    def read(self, name: str) -> IntWeight:
        """The integers of a linear as they are stored. Raises ExportError that names it."""
        stem = self._stems[name]
        assert self.form is not None
        tensors = {}
        try:
            for ours, spec in self._specs(stem).items():
                theirs = self._theirs(stem, ours)
                if theirs is not None:
                    array = self._files.read_array(f"{stem.stored}.{theirs}")
                    tensors[ours] = exact_f16(array, theirs) if spec.kind == "float" else array
            return unpack(tensors, self.form.format, (stem.n, stem.k), self._group_size)
        except ValueError as problem:
            raise ExportError(f"{stem.stored}: {problem}", hint=FORM_HINT) from problem

    def _found(self, stem: Stem) -> frozenset[str]:
        return frozenset(name for name in TENSOR_NAMES if f"{stem.stored}.{name}" in self._files)

    def _specs(self, stem: Stem) -> dict[str, StoredTensor]:
        assert self.form is not None
        try:
            return stored_tensors(self.form.format, (stem.n, stem.k), self._group_size)
        except ValueError as problem:
            raise ExportError(f"{stem.stored}: {problem}", hint=FORM_HINT) from problem

    def _theirs(self, stem: Stem, ours: str) -> str | None:
        """What the checkpoint calls a tensor of the layout; None when it has none."""
        assert self.form is not None
        names = [ours, *(theirs for theirs, of in ALIASES.get(self.form.format, {}).items() if of == ours)]
        return next((name for name in names if name in self._tensors[stem.name]), None)

    def _check(self, stem: Stem) -> None:
        """Headers only: every tensor of the layout is there, of its kind and shape, and no other."""
        assert self.form is not None
        left = set(self._tensors[stem.name])
        for ours, spec in self._specs(stem).items():
            theirs = self._theirs(stem, ours)
            if theirs is None and spec.required:
                message = f"{stem.stored}: {ours!r} is missing, which the layout {self.form.format} has"
                raise ExportError(message, hint=FORM_HINT)
            if theirs is not None:
                left.remove(theirs)
                self._check_header(f"{stem.stored}.{theirs}", spec, stem)
        if left:
            name = f"{stem.stored}.{min(left)}"
            message = f"{name}: does not belong to the layout {self.form.format}"
            if name.endswith("weight_g_idx"):
                message = f"{name}: the inputs are reordered, which cannot be read"
            raise ExportError(message, hint=FORM_HINT)

    def _check_header(self, full_name: str, spec: StoredTensor, stem: Stem) -> None:
        info = self._files.info(full_name)
        found = (_kind(info), info.shape)
        signed = full_name.endswith("weight_zero_point") and found == ("int8", (stem.n, stem.k // self._group_size))
        if found != (spec.kind, spec.shape) and not signed:  # early compressed-tensors left zero points unpacked
            message = f"{full_name} is {info.dtype} {list(info.shape)}, expected {spec.kind} {list(spec.shape)}"
            raise ExportError(message, hint=FORM_HINT)

    def _check_group_size(self) -> int:
        assert self.form is not None
        size = self.form.group_size
        if size not in GROUP_SIZES:
            shown = "whole rows" if size is None else f"groups of {size}"
            known = ", ".join(map(str, GROUP_SIZES))
            message = f"{self._files.folder}: integers in {shown}; groups of {known} can be exported"
            raise ExportError(message, hint=FORM_HINT)
        return size

    def _guess(self, stem: Stem) -> QuantizedForm:
        """The form of files that say nothing of themselves, as llm-awq's."""
        infos = {name: self._files.info(f"{stem.stored}.{name}") for name in self._tensors[stem.name]}
        found = find_layout({name: (_kind(info), info.shape) for name, info in infos.items()}, (stem.n, stem.k))
        if found is None or found[0] == "gptq":  # GPTQ's two versions differ in what a zero point means
            message = f"{self._files.folder}: {stem.stored} is stored as integers, and no quantization_config says how"
            raise ExportError(message, hint=FORM_HINT)
        return QuantizedForm(found[0], "compressed-tensors" if found[0] == "compressed-tensors" else "awq", found[1])


def _mixed(folder: Path, form: QuantizedForm | None, packed: Sequence[Stem], floats: Sequence[Stem]) -> ExportError:
    first, kept = floats[0].stored, form.kept if form is not None else ()
    entry = next((part for part in kept if part.removeprefix("re:").strip(".*") in first), None)
    key = "ignore" if form is not None and form.method == "compressed-tensors" else "modules_to_not_convert"
    why = f" ({key} has {entry!r})" if entry else ""
    return ExportError(
        f"{folder}: {first} is stored in floats{why}, with {len(floats)} of the {len(floats) + len(packed)} linears in "
        "the layers; the others are integers, and all or none can be exported",
        hint=FORM_HINT,
    )


def _kind(info: TensorInfo) -> str:
    return "float" if info.dtype in ITEM_BYTES else KINDS.get(info.dtype, info.dtype)
