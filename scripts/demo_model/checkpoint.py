"""A training run's state on disk: safetensors for tensors, JSON for the rest; replaced atomically, no pickle."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

STATE = "state.safetensors"
_PREFIXES = {"model": "model.", "head": "head."}


def save(
    out: Path, model: nn.Module, head: nn.Module, optimizers: list[torch.optim.Optimizer], meta: dict[str, Any]
) -> None:
    """Write `out/state.safetensors`; `meta` (step, counters) travels in its header: the two cannot disagree."""
    tensors: dict[str, Tensor] = {}
    for name, module in (("model", model), ("head", head)):
        tensors |= {_PREFIXES[name] + key: value.detach().contiguous() for key, value in module.state_dict().items()}
    for i, optimizer in enumerate(optimizers):
        for j, entry in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{j}.{key}": torch.as_tensor(value).contiguous() for key, value in entry.items()}
    out.mkdir(parents=True, exist_ok=True)
    temporary = out / (STATE + ".partial")
    save_file(tensors, temporary, metadata={"meta": json.dumps(meta)})
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    temporary.replace(out / STATE)


def meta_of(path: Path) -> dict[str, Any]:
    """The `meta` of a state file."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["meta"])


def load(
    path: Path, model: nn.Module, head: nn.Module | None = None, optimizers: list[torch.optim.Optimizer] | None = None
) -> dict[str, Any]:
    """Fill the modules (and optimizers) from a state file; returns its `meta`."""
    tensors = load_file(path)
    model.load_state_dict(_under(tensors, "model."))
    if head is not None:
        head.load_state_dict(_under(tensors, "head."), strict=False)  # the token head may begin later
    for i, optimizer in enumerate(optimizers or []):
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in _under(tensors, f"optimizer.{i}.").items():
            j, name = key.split(".", 1)
            state.setdefault(int(j), {})[name] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return meta_of(path)


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
