"""A projector pre-trained by itself, as LLaVA's first training stage leaves it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from models.weights import read_tensors

_MARK = "mm_projector."


def read_adapter(path: str | Path) -> dict[str, Tensor]:
    """The tensors of ``path``: safetensors, or torch's format read weights-only (no code of the file is run)."""
    if Path(path).suffix == ".safetensors":
        return read_tensors(Path(path))
    content: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return content


def load_adapter(projector: nn.Module, path: str | Path) -> None:
    """Load the tensors whose name holds "mm_projector." into ``projector``, strictly.

    Everything up to and including that mark is taken off the names. Raises RuntimeError naming missing and unknown
    tensors.
    """
    tensors = {name.split(_MARK, 1)[1]: tensor for name, tensor in read_adapter(path).items() if _MARK in name}
    projector.load_state_dict(tensors, strict=True)
