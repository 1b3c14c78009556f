"""A projector pre-trained by itself, as LLaVA's first training stage leaves it."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from models.torch_files import read_torch_table
from models.weights import read_tensors

_MARK = "mm_projector."


def read_adapter(path: str | Path) -> dict[str, Tensor]:
    """The tensors of ``path``: safetensors, or torch's format (``models.torch_files``: no code of the file is run)."""
    if Path(path).suffix == ".safetensors":
        return read_tensors(Path(path))
    return read_torch_table(path)


def load_adapter(projector: nn.Module, path: str | Path) -> None:
    """Load the tensors whose name holds "mm_projector." into ``projector``, strictly.

    Everything up to and including that mark is taken off the names. Raises RuntimeError naming missing and unknown
    tensors.
    """
    tensors = {name.split(_MARK, 1)[1]: tensor for name, tensor in read_adapter(path).items() if _MARK in name}
    projector.load_state_dict(tensors, strict=True)
