"""What a checkpoint says of its own integers: the configuration's ``quantization_config`` and ``quantization.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.decoder.safetensors_file import COPY_HINT
from kernels.packing import QuantizedForm, read_quantization_config
from runtime.errors import ExportError
from runtime.strict_json import read_json

# Written by export.quantize beside the configuration at the top of a checkpoint.
RECORD = "quantization.json"
# What AutoAWQ and AutoGPTQ wrote before there was a quantization_config.
OLDER_FILES = ("quant_config.json", "quantize_config.json")
MAX_BYTES = 64 << 20
METHODS = ("rtn", "awq", "gptq", "compressed-tensors")
HEAD_BITS = (4, 8, 16)
FORM_HINT = "export the checkpoint that it was quantised from, or quantise that with python -m export.quantize"


@dataclass(frozen=True, slots=True)
class CheckpointQuantization:
    """How a checkpoint's linears are stored, and how its head is to be.

    form: None where they are floats, which the exporter rounds to nearest; method: how the integers were chosen;
    head_bits: 4 or 8 for integers, 16 for f16; files: what all this was read from, config.json apart.
    """

    form: QuantizedForm | None
    method: str
    head_bits: int
    files: tuple[Path, ...]


def read_quantization(root: Path, folder: Path, config: Mapping[str, Any]) -> CheckpointQuantization:
    """Reads what stands in the decoder's ``config`` (that of ``folder``) and in the files beside it and in ``root``.

    Raises ExportError that names the file, the setting and its value: a form that cannot be read, a record that
    contradicts the configuration.
    """
    form, files = _form(folder, config)
    path = root / RECORD
    if not path.is_file():
        return CheckpointQuantization(form, form.method if form else "rtn", 4, files)
    record = read_json(path, max_bytes=MAX_BYTES, error=ExportError, hint=COPY_HINT)
    if not isinstance(record, dict):
        raise ExportError(f"{path}: is not a table", hint=COPY_HINT)
    method, head_bits = record.get("method", form.method if form else "rtn"), record.get("head_bits", 4)
    if method not in METHODS:
        raise ExportError(f"{path}: method is {method!r}, expected one of {', '.join(METHODS)}", hint=COPY_HINT)
    if type(head_bits) is not int or head_bits not in HEAD_BITS:
        raise ExportError(f"{path}: head_bits is {head_bits!r}, expected one of {HEAD_BITS}", hint=COPY_HINT)
    if form is not None and record.get("group_size", form.group_size) != form.group_size:
        message = f"{path}: group_size is {record['group_size']!r}, the configuration says {form.group_size}"
        raise ExportError(message, hint=COPY_HINT)
    return CheckpointQuantization(form, method if form else "rtn", head_bits, (*files, path))


def _form(folder: Path, config: Mapping[str, Any]) -> tuple[QuantizedForm | None, tuple[Path, ...]]:
    inner = config.get("text_config")
    for table in (config, inner if isinstance(inner, dict) else {}):
        if table.get("quantization_config"):
            return _parsed(f"{folder / 'config.json'}: quantization_config", table["quantization_config"]), ()
    for name in OLDER_FILES:
        path = folder / name
        if path.is_file():
            return _parsed(str(path), read_json(path, max_bytes=MAX_BYTES, error=ExportError, hint=COPY_HINT)), (path,)
    return None, ()


def _parsed(where: str, described: Any) -> QuantizedForm:
    if not isinstance(described, dict):
        raise ExportError(f"{where}: is not a table", hint=COPY_HINT)
    try:
        return read_quantization_config(described)
    except ValueError as problem:
        raise ExportError(f"{where}: {problem}", hint=FORM_HINT) from problem
