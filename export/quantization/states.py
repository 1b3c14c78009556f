"""Hidden states of the calibration prompts between two layers: a file a prompt, never all of them in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import overload

import torch
from torch import Tensor

from export.quantization.journal import Journal
from models.awq import LayerBatch


class States:
    """The states f32 [n, D] of ``count`` prompts at the input of one layer (0: embeddings; layers: the final norm)."""

    def __init__(self, journal: Journal, layer: int, count: int) -> None:
        self._journal, self._layer, self._count = journal, layer, count
        self.folder = f"states-{layer:04d}"

    def __len__(self) -> int:
        return self._count

    def has(self, index: int) -> bool:
        """Whether the states of a prompt were written."""
        return self._journal.has_array(f"{self.folder}/{index:05d}")

    def write(self, index: int, states: Tensor) -> None:
        """Keeps the states [n, D] of a prompt."""
        self._journal.write_array(f"{self.folder}/{index:05d}", states.cpu().numpy())

    def read(self, index: int) -> Tensor:
        """The states of a prompt, f32 [n, D], in memory of torch's own (whose alignment does not vary)."""
        return torch.from_numpy(self._journal.read_array(f"{self.folder}/{index:05d}")).clone()

    def drop(self) -> None:
        """Removes the files."""
        self._journal.drop(self.folder)


class StateBatches(Sequence[LayerBatch]):
    """Some of the states as inputs of a layer; each batch is read when it is asked for."""

    def __init__(self, states: States, chosen: Sequence[int], batch: Callable[[Tensor], LayerBatch]) -> None:
        self._states, self._chosen, self._batch = states, chosen, batch

    def __len__(self) -> int:
        return len(self._chosen)

    @overload
    def __getitem__(self, index: int) -> LayerBatch: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[LayerBatch]: ...
    def __getitem__(self, index: int | slice) -> LayerBatch | Sequence[LayerBatch]:
        if isinstance(index, slice):
            return StateBatches(self._states, self._chosen[index], self._batch)
        return self._batch(self._states.read(self._chosen[index])[None])
