"""Weights on disk: safetensors alone, checked before they are used, one tensor at a time.

Nothing here unpickles. A directory that holds only ``.bin`` or ``.pt`` files is refused with the command that
converts it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, StrictDataclassError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import GenerationConfig

from runtime.errors import ExportError

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
Rename = Callable[[str], "str | None"]


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises ExportError naming the file when it is missing or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ExportError(f"{path} is missing", hint="point at the checkpoint's own directory") from error
    except (OSError, ValueError) as error:
        raise ExportError(f"{path} cannot be read as JSON: {error}", hint="copy the checkpoint again") from error
    if not isinstance(content, dict):
        raise ExportError(f"{path} holds {type(content).__name__}, an object is needed")
    return content


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a model directory: one, or the shards that its index names.

    Raises ExportError when there are none, when a shard is missing, and for pickle checkpoints.
    """
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(read_json(index).get("weight_map", {}).values()))
        files = [directory / name for name in names]
        for file in files:
            if file.parent != directory or not file.is_file():
                raise ExportError(
                    f"{file} is missing: {index.name} names {len(files)} shards", hint="copy the missing shard"
                )
    else:
        single = directory / "model.safetensors"  # beside it may lie a range or an adapter
        files = [single] if single.is_file() else sorted(directory.glob("*.safetensors"))
    if files:
        return files
    pickles = sorted(file.name for pattern in _PICKLES for file in directory.glob(pattern))
    if pickles:
        raise ExportError(
            f"{directory} holds {pickles[0]}, a pickle: it could run code when it is opened, so it is not read",
            hint=f"convert it once: python -m export.convert {directory} --out <directory>",
        )
    raise ExportError(f"{directory} holds no safetensors file", hint="copy model.safetensors into it")


@dataclass(frozen=True, slots=True)
class TensorOnDisk:
    """A tensor in a safetensors file: where it lies, its shape, and its dtype as the file's header calls it."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str

    def read(self) -> Tensor:
        """The tensor, memory-mapped; its pages are given back with it.

        The file is mapped anew each time: pages that were read stay in memory as long as their mapping, so one mapping
        for a whole file would end with all of it in memory.
        """
        with _opened(self.file) as opened:
            tensor: Tensor = opened.get_tensor(self.name)
        return tensor


def tensors_of(files: list[Path]) -> dict[str, TensorOnDisk]:
    """Every tensor of ``files`` by name, from their headers. Raises ExportError for a name that comes twice."""
    found: dict[str, TensorOnDisk] = {}
    for file in files:
        with _opened(file) as opened:
            for name in opened.keys():  # noqa: SIM118 (safe_open is no mapping)
                if name in found:
                    raise ExportError(f"{name!r} is in {found[name].file} and in {file}", hint="keep one of them")
                described = opened.get_slice(name)
                found[name] = TensorOnDisk(file, name, tuple(described.get_shape()), described.get_dtype())
    return found


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Every tensor of one safetensors file. Raises ExportError when it is missing or truncated."""
    return {name: tensor.read() for name, tensor in tensors_of([file]).items()}


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        with safe_open(str(file), framework="pt") as opened:
            yield opened
    except (SafetensorError, OSError) as error:
        raise ExportError(
            f"{file} cannot be read as safetensors: {error}", hint="it is missing or truncated; copy it again"
        ) from error


def load_strict(
    module: nn.Module,
    directory: Path,
    *,
    named: str,
    rename: Rename | None = None,
    may_lack: frozenset[str] = frozenset(),
) -> None:
    """Copy the weights of ``directory`` into ``module``, every one exactly once, memory-mapped, one at a time.

    ``rename`` maps a name on disk to one of ``module``, or to None for a tensor to leave out. ``may_lack``: names
    that need not be on disk (a head tied to the embeddings). Raises ExportError naming the first missing, unknown or
    misshapen tensor and how many there are, before anything is copied.
    """
    load_tensors(module, tensors_of(weight_files(directory)), named=named, rename=rename, may_lack=may_lack)


@torch.no_grad()
def load_tensors(
    module: nn.Module,
    stored: Mapping[str, TensorOnDisk],
    *,
    named: str,
    rename: Rename | None = None,
    may_lack: frozenset[str] = frozenset(),
) -> None:
    """``load_strict`` for tensors that were looked up already (``tensors_of``)."""
    targets = dict(module.state_dict(keep_vars=True))
    wanted: dict[str, TensorOnDisk] = {}
    unknown = []
    for name, tensor in stored.items():
        target = rename(name) if rename else name
        if target is None:
            continue
        if target not in targets:
            unknown.append(name)
        elif target in wanted:
            raise ExportError(f"the {named}'s weights hold {name!r} and {wanted[target].name!r}, which are the same")
        else:
            wanted[target] = tensor
    _refuse_unfit(named, targets, wanted, unknown, may_lack)
    for target, tensor in wanted.items():
        parameter: Any = targets[target]
        if parameter.is_meta:  # has no memory: remembers where its values lie, for export.vision.streamed
            parameter.stored_in = (tensor.file, tensor.name)
        else:
            parameter.copy_(tensor.read())


def _refuse_unfit(
    named: str,
    targets: Mapping[str, Tensor],
    wanted: Mapping[str, TensorOnDisk],
    unknown: Sequence[str],
    may_lack: frozenset[str],
) -> None:
    if unknown:
        raise ExportError(
            f"the {named}'s weights hold {first_and_count(unknown)}, which the {named} does not have",
            hint="check config.json against the weights",
        )
    for target, tensor in wanted.items():
        if targets[target].shape != tensor.shape:
            raise ExportError(
                f"the {named}'s {tensor.name!r} has shape {tensor.shape}, not {tuple(targets[target].shape)} "
                "as configured",
                hint="check config.json against the weights",
            )
    if missing := sorted(set(targets) - set(wanted) - may_lack):
        raise ExportError(f"the {named}'s weights lack {first_and_count(missing)}", hint="copy the checkpoint again")


def first_and_count(names: Sequence[str]) -> str:
    """The first name, quoted, and how many more there are."""
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{min(names)!r}{more}"


def model_directory(name: str | Path) -> Path:
    """A local directory for a path or for a hub name that is already in the local cache; nothing is downloaded."""
    if Path(name).is_dir():
        return Path(name)
    try:
        return Path(snapshot_download(str(name), local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError) as error:
        raise ExportError(
            f"{name} is neither a directory nor in the local Hugging Face cache", hint=f"hf download {name}"
        ) from error


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """torch's default dtype inside a ``with`` block, so that modules are made in it and no fp32 copy exists."""
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(previous)


def read_config(directory: Path, config_class: Any) -> Any:
    """transformers' configuration of a directory. Raises ExportError naming what it refuses in config.json."""
    read_json(directory / "config.json")
    try:
        return config_class.from_pretrained(directory, local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError, StrictDataclassError) as error:
        raise ExportError(f"{directory}/config.json is refused by transformers: {error}") from error


def read_generation_config(directory: Path) -> GenerationConfig | None:
    """The generation_config.json of a folder, None where there is none. Raises ExportError for a damaged one."""
    if not (directory / "generation_config.json").is_file():
        return None
    try:
        return GenerationConfig.from_pretrained(directory, local_files_only=True)
    except (OSError, ValueError, TypeError) as error:
        raise ExportError(f"{directory}/generation_config.json is refused by transformers: {error}") from error
