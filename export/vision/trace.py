"""Traces tower and projector with torch and proves that the graphs compute the same. Imports torch.

The weights stay on disk throughout: the tracer sees shapes, torch's reference results are computed operator by operator
from the checkpoint, ONNX Runtime maps the file of the weights. So memory grows with one tensor, not with the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from export.checkpoint import Checkpoint
from export.vision.capture import capture
from export.vision.graph import clean, max_error, save
from export.vision.load import VisionModules, load_vision
from export.vision.names import FEATURES, PROJECTOR_FILE, PROJECTOR_OUTPUT, TOWER_FILE, TOWER_INPUT, scale_inputs
from export.vision.sessions import open_graph
from export.vision.streamed import StreamedWeights
from export.vision.weights import data_file, store_weights
from models.lazy_parameters import WithoutMemory
from runtime.decoder.free_memory import return_free_memory
from runtime.errors import ExportError
from runtime.tiling import area_matrix

# Largest difference between graph and torch, relative to the largest value (both f32).
ERROR_LIMIT = 1e-4
_TRACED_TILES = 2
_OTHER_TILES, _FEWER_TILES = (1, 3, 5), (1, 3)  # a tile through a tower whose weights lie apart takes seconds
_Progress = Callable[[str], None]
_Grid = tuple[int, int]
_Dims = dict[str, Sequence[str | int]]


@dataclass(frozen=True, slots=True)
class TraceErrors:
    """Largest absolute difference between each graph and torch, over shapes that were not traced."""

    tower_max_error: float
    projector_max_error: float


class _Tower(nn.Module):
    def __init__(self, modules: VisionModules) -> None:
        super().__init__()
        self.tower = modules.tower

    def forward(self, tiles: Tensor) -> Tensor:
        return self.tower.features(tiles)


def trace_vision(checkpoint: Checkpoint, folder: Path, progress: _Progress = lambda _: None) -> TraceErrors:
    """Writes vision_tower.onnx and vision_projector.onnx into ``folder``, large weights into files beside them.

    Opset 18; tiles (and, with S², the matrices' shapes) are free. Each graph is run by ONNX Runtime on shapes that were
    not traced. Raises ExportError when a graph is invalid or differs from torch by more than ``ERROR_LIMIT``.
    """
    progress("tracing the vision tower")
    tower_error = trace_tower(checkpoint, folder)
    progress("tracing the projector")
    return TraceErrors(tower_error, trace_projector(checkpoint, folder))


@torch.no_grad()
def trace_tower(checkpoint: Checkpoint, folder: Path) -> float:
    """The first of the two graphs alone; returns its error."""
    return _trace_tower(checkpoint, _Tower(_modules(checkpoint)).eval(), folder / TOWER_FILE)


@torch.no_grad()
def trace_projector(checkpoint: Checkpoint, folder: Path) -> float:
    """The second of the two graphs alone; returns its error."""
    return _trace_projector(checkpoint, _modules(checkpoint).projector, folder / PROJECTOR_FILE)


def _modules(checkpoint: Checkpoint) -> VisionModules:
    with WithoutMemory():
        return load_vision(checkpoint)


def _trace_tower(checkpoint: Checkpoint, tower: nn.Module, path: Path) -> float:
    side = checkpoint.tiling.tile_px
    with StreamedWeights(tower) as weights:
        example = (torch.empty(_TRACED_TILES, 3, side, side),)
        free = {TOWER_INPUT: {0: torch.export.Dim.DYNAMIC}}
        captured = capture(tower, weights.stored, example, [TOWER_INPUT], FEATURES, free)
        dims: _Dims = {
            TOWER_INPUT: ["T", 3, side, side],
            FEATURES: ["T", checkpoint.patches_per_tile, checkpoint.channels],
        }
        model = clean(captured.model, dims)
        store_weights(model, captured.weights, path)
        save(model, path)
        counts = _FEWER_TILES if data_file(path).exists() else _OTHER_TILES

        def cases() -> Iterator[tuple[Tensor, ...]]:
            source = _generator()
            return ((torch.randn(count, 3, side, side, generator=source),) for count in counts)

        expected = _expected(tower, weights, cases())
    return _compare(path, [TOWER_INPUT], cases(), expected)


def _trace_projector(checkpoint: Checkpoint, projector: nn.Module, path: Path) -> float:
    patches, channels = checkpoint.patches_per_tile, checkpoint.channels
    pairs = scale_inputs(len(checkpoint.tiling.scales_px))
    names = [FEATURES, *(name for pair in pairs for name in pair)]
    dims: _Dims = {FEATURES: ["T", patches, channels]}
    free: dict[str, Any] = {FEATURES: {0: torch.export.Dim.DYNAMIC}}
    if pairs:
        for index, (height, width) in enumerate(pairs):
            dims |= {height: ["H", f"h_{index}"], width: ["W", f"w_{index}"]}
        free["matrices"] = tuple({0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC} for _ in names[1:])
    with StreamedWeights(projector) as weights:
        captured = capture(projector, weights.stored, _traced_example(checkpoint), names, PROJECTOR_OUTPUT, free)
        model = clean(captured.model, dims | {PROJECTOR_OUTPUT: ["N", captured.width]})
        store_weights(model, captured.weights, path)
        save(model, path)

        def cases() -> Iterator[tuple[Tensor, ...]]:
            return (_example(checkpoint, *grids) for grids in _other_grids(len(pairs)))

        expected = _expected(projector, weights, cases())
    return _compare(path, names, cases(), expected)


def _other_grids(scales: int) -> list[tuple[list[_Grid], _Grid]]:
    """(grid of each scale, output grid): a plain block, square coarse scales below wide and tall fine ones."""
    if not scales:
        return [([], (count, 1)) for count in _OTHER_TILES]
    coarse = [(index + 1, index + 1) for index in range(scales - 1)]
    fine = [(1, 1), (2, 3), (3, 2), (1, 6), (5, 1), (4, 3)]
    return [([(1, 1)] * scales, (1, 1)), *(([*coarse, grid], grid) for grid in fine)]


def _traced_example(checkpoint: Checkpoint) -> tuple[Tensor, ...]:
    """What the projector is traced on, never read: no two sizes are equal and none is 1, so that none is constant."""
    side, scales = checkpoint.tiling.patches_per_side, len(checkpoint.tiling.scales_px)
    grids = [(2 + index, 3 + 2 * index) for index in range(scales)]
    rows, cols = 7, 11
    count = sum(height * width for height, width in grids) if grids else rows
    features = torch.empty(count, checkpoint.patches_per_tile, checkpoint.channels)
    sizes = [size for height, width in grids for size in ((rows * side, height * side), (cols * side, width * side))]
    return (features, *(torch.empty(size) for size in sizes))


def _example(checkpoint: Checkpoint, grids: list[_Grid], out: _Grid) -> tuple[Tensor, ...]:
    """Random features and the matrices for (rows, cols) of tiles of each scale; without scales ``out[0]`` tiles."""
    side = checkpoint.tiling.patches_per_side
    count = sum(rows * cols for rows, cols in grids) if grids else out[0]
    features = torch.randn(count, checkpoint.patches_per_tile, checkpoint.channels, generator=_generator())
    matrices = []
    for rows, cols in grids:
        matrices += [area_matrix(out[0] * side, rows * side), area_matrix(out[1] * side, cols * side)]
    return (features, *(torch.from_numpy(matrix) for matrix in matrices))


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _expected(module: nn.Module, weights: StreamedWeights, cases: Iterator[tuple[Tensor, ...]]) -> list[Any]:
    """What torch computes; its activations are given back before ONNX Runtime makes its own."""
    with weights.read_as_needed():
        expected = [np.asarray(module(*case)) for case in cases]
    return_free_memory()
    return expected


def _compare(path: Path, names: list[str], cases: Iterator[tuple[Tensor, ...]], expected: list[Any]) -> float:
    session = open_graph(path)
    found = (
        session.run(None, {name: value.numpy() for name, value in zip(names, case, strict=True)})[0] for case in cases
    )
    error = max_error(found, expected)
    limit = ERROR_LIMIT * max(1.0, *(float(np.abs(value).max()) for value in expected))
    if error > limit:
        raise ExportError(f"{path.name}: differs from torch by {error:.3g}, the limit is {limit:.3g}")
    return error
