"""Weights on disk: safetensors alone, checked before they are used, one tensor at a time.

Nothing here unpickles. A directory that holds only ``.bin`` or ``.pt`` files is refused with the command that
converts it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, StrictDataclassError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

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
        files = sorted(directory.glob("*.safetensors"))
    if files:
        return files
    pickles = sorted(file.name for pattern in _PICKLES for file in directory.glob(pattern))
    if pickles:
        raise ExportError(
            f"{directory} holds {pickles[0]}, a pickle: it could run code when it is opened, so it is not read",
            hint=f"convert it once: python -m export.convert {directory} --out <directory>",
        )
    raise ExportError(f"{directory} holds no safetensors file", hint="copy model.safetensors into it")


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Every tensor of one safetensors file. Raises ExportError when it is missing or truncated."""
    return dict(iterate_tensors([file]))


def iterate_tensors(files: list[Path]) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) for each tensor of ``files``, memory-mapped, one at a time."""
    for file in files:
        try:
            with safe_open(str(file), framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 (safe_open is no mapping)
                    yield name, opened.get_tensor(name)
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
    """Copy the weights of ``directory`` into ``module``, every one exactly once.

    ``rename`` maps a name on disk to one of ``module``, or to None for a tensor to leave out. ``may_lack``: names
    that need not be on disk (a head tied to the embeddings). Raises ExportError naming the first missing, unknown or
    misshapen tensor.
    """
    load_files(module, weight_files(directory), named=named, rename=rename, may_lack=may_lack)


@torch.no_grad()
def load_files(
    module: nn.Module,
    files: list[Path],
    *,
    named: str,
    rename: Rename | None = None,
    may_lack: frozenset[str] = frozenset(),
) -> None:
    """``load_strict`` for an explicit list of files."""
    targets = dict(module.state_dict(keep_vars=True))
    seen: set[str] = set()
    for name, tensor in iterate_tensors(files):
        wanted = rename(name) if rename else name
        if wanted is None:
            continue
        if wanted not in targets:
            raise ExportError(f"the {named}'s weights hold {name!r}, which the {named} does not have")
        target = targets[wanted]
        if target.shape != tensor.shape:
            raise ExportError(
                f"the {named}'s {name!r} has shape {tuple(tensor.shape)}, not {tuple(target.shape)} as configured"
            )
        target.copy_(tensor)
        seen.add(wanted)
    missing = sorted(set(targets) - seen - may_lack)
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ExportError(f"the {named}'s weights lack {missing[0]!r}{more}", hint="copy the checkpoint again")


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
