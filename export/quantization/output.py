"""The quantised checkpoint on disk: a copy of the source in its own layout, with packed integers in its decoder."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from export.decoder.safetensors_file import SafetensorsFile
from export.quantization.journal import Journal
from export.quantization.request import Format
from export.quantization.shards import Entry, as_f16, plan_shards, write_shards
from export.quantization.source import BLOCK_BYTES, DecoderSource, read_config, read_pieces
from kernels.packing.quantization_config import quantization_config
from kernels.packing.stored import stored_tensors
from runtime.bundle.tensor_header import TensorInfo
from runtime.errors import ExportError

CONFIG = "config.json"
RECORD = "quantization.json"
LAYOUTS: Mapping[Format, str] = {"awq": "autoawq-gemm", "compressed-tensors": "compressed-tensors"}
# Beside weights, what makes a checkpoint: settings, tokenizers, templates, licences. No pickles, no code.
_COPIED_SUFFIXES = (".json", ".jinja", ".txt", ".model", ".md")
_COPIED_NAMES = ("LICENSE", "LICENCE", "NOTICE")
_COPIED_MAX_BYTES = 64 << 20
_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")  # any other file holds something else
_LEFT_FOLDERS = ("onnx",)  # graphs traced from the full weights
_MAX_DEPTH = 3
_ITEM_BYTES = {"int32": 4, "int64": 8, "float": 2}
_WIDE = ("F32", "F64")  # these become f16; 16-bit tensors stay as they are


def copied_files(source: DecoderSource) -> list[Path]:
    """The files of the checkpoint that are copied, relative to it: all but the decoder's weights, pickles and code."""
    found = []
    for folder, folders, names in os.walk(source.root, followlinks=True):
        place = Path(folder)
        depth = len(place.relative_to(source.root).parts)
        folders[:] = sorted(
            name for name in folders if name not in _LEFT_FOLDERS and not name.startswith(".") and depth < _MAX_DEPTH
        )
        for name in sorted(names):
            if place == source.folder and (_WEIGHTS.fullmatch(name) or place / name in source.weights):
                continue
            if name.endswith((".safetensors", ".safetensors.index.json")) or _is_copied(place / name):
                found.append((place / name).relative_to(source.root))
    return found


def _is_copied(path: Path) -> bool:
    named = path.suffix in _COPIED_SUFFIXES or path.stem in _COPIED_NAMES
    listed = named and not path.name.startswith(".") and path.name != RECORD and not _is_pickle_index(path.name)
    return listed and path.is_file() and path.stat().st_size <= _COPIED_MAX_BYTES


def _is_pickle_index(name: str) -> bool:
    return name.endswith(".bin.index.json")


def packed_bytes(source: DecoderSource, form: Format, group_size: int) -> int:
    """Bytes of the decoder's files when its linears are packed."""
    total = 0
    linears = {}
    for index in range(source.decoder.config.layers):
        for linear in source.decoder.layer(index).values():
            linears[f"{source.prefix}{linear.name}.weight"] = linear
    for name, info in source.tensors.items():
        if name not in linears:
            total += _kept_bytes(info)
            continue
        linear = linears[name]
        for stored in stored_tensors(LAYOUTS[form], (linear.n, linear.k), group_size).values():
            total += _ITEM_BYTES[stored.kind] * math.prod(stored.shape)
    return total


def write_checkpoint(folder: Path, source: DecoderSource, journal: Journal, wrote: Callable[[int], None]) -> None:
    """Writes files and weights of the quantised checkpoint into the empty ``folder``; settings come after it.

    The layers' tensors are those of the journal's ``layer-….safetensors``. ``wrote`` is told bytes as they are
    written. Raises ExportError for values that do not fit f16.
    """
    for relative in copied_files(source):
        target = folder / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source.root / relative, target)
        wrote(target.stat().st_size)
    with ExitStack() as stack:
        entries = _entries(source, journal, stack)
        try:
            write_shards(folder / source.folder.relative_to(source.root), plan_shards(entries), wrote)
        except ValueError as problem:
            raise ExportError(f"{source.folder}: {problem}", hint="half precision does not hold it") from problem


def write_settings(
    folder: Path, source: DecoderSource, form: Format, group_size: int, record: Mapping[str, Any]
) -> None:
    """Says in the configurations of ``folder`` how its decoder is stored, and puts ``record`` beside them."""
    inside = source.folder.relative_to(source.root)
    stored = quantization_config(LAYOUTS[form], group_size, _kept_modules(source, form))
    config = read_config(folder / inside / CONFIG)
    _write_json(folder / inside / CONFIG, _with_half(config, form) | {"quantization_config": stored})
    if inside.parts:
        top = read_config(folder / CONFIG)
        if isinstance(top.get("llm_cfg"), dict):
            described = _with_half(top["llm_cfg"], form)
            _write_json(folder / CONFIG, top | {"llm_cfg": described | {"quantization_config": stored}})
    _write_json(folder / RECORD, dict(record))


def layer_file(index: int) -> str:
    """The journal's file of a finished layer."""
    return f"layer-{index:04d}.safetensors"


def kept_dtype(info: TensorInfo) -> str:
    """How a tensor that is not quantised is stored: in 16 bits, or as it is when it has no more."""
    return "F16" if info.dtype in _WIDE else info.dtype


def _kept_bytes(info: TensorInfo) -> int:
    return 2 * math.prod(info.shape) if info.dtype in _WIDE else info.end - info.begin


def _entries(source: DecoderSource, journal: Journal, stack: ExitStack) -> list[Entry]:
    """All tensors of the decoder's files; those of a layer where its first one stood."""
    layers = range(source.decoder.config.layers)
    layer_of = {name: index for index in layers for name in source.layer_tensors(index).values()}
    entries: list[Entry] = []
    seen: set[int] = set()
    for name, info in source.tensors.items():
        index = layer_of.get(name)
        if index is None:
            entries.append(_kept_entry(source, name, info))
        elif index not in seen:
            seen.add(index)
            file = stack.enter_context(SafetensorsFile(journal.folder / layer_file(index)))
            entries += [_stored_entry(file, stored, found) for stored, found in file.tensors.items()]
    return entries


def _kept_entry(source: DecoderSource, name: str, info: TensorInfo) -> Entry:
    pieces = partial(_halved, source, name) if info.dtype in _WIDE else partial(source.raw, name)
    return Entry(name, kept_dtype(info), info.shape, _kept_bytes(info), pieces)


def _halved(source: DecoderSource, name: str) -> Iterator[bytes]:
    return as_f16(name, source.iter_rows(name, BLOCK_BYTES))


def _stored_entry(file: SafetensorsFile, name: str, info: TensorInfo) -> Entry:
    return Entry(name, info.dtype, info.shape, info.end - info.begin, partial(read_pieces, file, name))


def _kept_modules(source: DecoderSource, form: Format) -> list[str]:
    """Names of what stays unquantised beside the decoder's layers.

    AutoAWQ's list is matched from the start of a name (transformers) or anywhere in it (vLLM), so that both spellings
    stand there.
    """
    if source.folder != source.root:
        return ["lm_head"]
    parts = ("vision_tower", "multi_modal_projector", "mm_projector")
    found = [part for part in parts if any(f"{part}." in name for name in source.tensors)]
    if form == "compressed-tensors":
        return ["lm_head", "re:.*lm_head", *(f"re:.*{part}.*" for part in found)]
    return ["lm_head", *found, *(f"model.{part}" for part in found)]


def _with_half(config: dict[str, Any], form: Format) -> dict[str, Any]:
    """The dtype that loaders take: f16 scales would lose bits in bf16, and AWQ kernels compute in f16."""
    left = ("float16",) if form == "awq" else ("float16", "bfloat16")
    changed = dict(config)
    for key in ("dtype", "torch_dtype"):
        if key in changed and str(changed[key]).removeprefix("torch.") not in left:
            changed[key] = "float16"
    if isinstance(changed.get("text_config"), dict):
        changed["text_config"] = _with_half(changed["text_config"], form)
    return changed


def _write_json(path: Path, fields: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(fields, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
