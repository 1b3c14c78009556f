"""Traces tower and projector with torch and proves that the graphs compute the same. Imports torch."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from export.checkpoint import Checkpoint
from export.vision.graph import clean, max_error, narrow_weights, save
from export.vision.load import VisionModules, load_vision
from export.vision.names import (
    FEATURES,
    OPSET,
    PROJECTOR_FILE,
    PROJECTOR_OUTPUT,
    TOWER_FILE,
    TOWER_INPUT,
    scale_inputs,
)
from runtime.errors import ExportError
from runtime.tiling import area_matrix

# Largest difference between graph and torch, relative to the largest value (both f32).
ERROR_LIMIT = 1e-4
_TRACED_TILES, _OTHER_TILES = 2, (1, 3, 5)
_Progress = Callable[[str], None]


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
    """Writes vision_tower.onnx and vision_projector.onnx into ``folder``.

    Opset 18; tiles (and, with S², the matrices' shapes) are free. Each graph is run by ONNX Runtime on shapes that were
    not traced. Raises ExportError when a graph is invalid or differs from torch by more than ``ERROR_LIMIT``.
    """
    with torch.no_grad():
        modules = load_vision(checkpoint)
        progress("tracing the vision tower")
        tower_error = _trace_tower(checkpoint, modules, folder)
        progress("tracing the projector")
        projector_error = _trace_projector(checkpoint, modules, folder)
    return TraceErrors(tower_error, projector_error)


def _trace_tower(checkpoint: Checkpoint, modules: VisionModules, folder: Path) -> float:
    side = checkpoint.tiling.tile_px
    source = _generator()

    def tiles(count: int) -> tuple[Tensor, ...]:
        return (torch.randn(count, 3, side, side, generator=source),)

    dims: dict[str, Sequence[str | int]] = {
        TOWER_INPUT: ["T", 3, side, side],
        FEATURES: ["T", checkpoint.patches_per_tile, checkpoint.channels],
    }
    free = {TOWER_INPUT: {0: torch.export.Dim.DYNAMIC}}
    model = _export(_Tower(modules).eval(), tiles(_TRACED_TILES), [TOWER_INPUT], FEATURES, free)
    save(narrow_weights(clean(model, dims)), folder / TOWER_FILE)
    return _compare(folder / TOWER_FILE, _Tower(modules), [TOWER_INPUT], [tiles(count) for count in _OTHER_TILES])


def _trace_projector(checkpoint: Checkpoint, modules: VisionModules, folder: Path) -> float:
    patches, channels = checkpoint.patches_per_tile, checkpoint.channels
    pairs = scale_inputs(len(checkpoint.tiling.scales_px))
    names = [FEATURES, *(name for pair in pairs for name in pair)]
    hidden = int(modules.projector(*_example(checkpoint, [(2, 2)] * len(pairs), (2, 2))).shape[-1])
    dims: dict[str, Sequence[str | int]] = {FEATURES: ["T", patches, channels], PROJECTOR_OUTPUT: ["N", hidden]}
    free: dict[str, Any] = {FEATURES: {0: torch.export.Dim.DYNAMIC}}
    if pairs:
        for index, (height, width) in enumerate(pairs):
            dims |= {height: ["H", f"h_{index}"], width: ["W", f"w_{index}"]}
        free["matrices"] = tuple({0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC} for _ in names[1:])
    # No two sizes of the traced example are equal, and none is 1, so that none becomes a constant.
    traced = [(2 + index, 3 + 2 * index) for index in range(len(pairs))]
    example = _example(checkpoint, traced, (7, 11))
    model = _export(modules.projector, example, names, PROJECTOR_OUTPUT, free)
    save(narrow_weights(clean(model, dims)), folder / PROJECTOR_FILE)
    cases = [_example(checkpoint, *grids) for grids in _other_grids(len(pairs))]
    return _compare(folder / PROJECTOR_FILE, modules.projector, names, cases)


def _other_grids(scales: int) -> list[tuple[list[tuple[int, int]], tuple[int, int]]]:
    """(grid of each scale, output grid): a plain block, square coarse scales below wide and tall fine ones."""
    if not scales:
        return [([], (count, 1)) for count in _OTHER_TILES]
    coarse = [(index + 1, index + 1) for index in range(scales - 1)]
    fine = [(1, 1), (2, 3), (3, 2), (1, 6), (5, 1), (4, 3)]
    return [([(1, 1)] * scales, (1, 1)), *(([*coarse, grid], grid) for grid in fine)]


def _example(checkpoint: Checkpoint, grids: list[tuple[int, int]], out: tuple[int, int]) -> tuple[Tensor, ...]:
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


def _export(module: nn.Module, example: tuple[Tensor, ...], names: list[str], output: str, free: dict[str, Any]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quiet = logging.getLogger("torch.onnx")
        level = quiet.level
        quiet.setLevel(logging.ERROR)
        try:
            program = torch.onnx.export(
                module,
                example,
                dynamo=True,
                opset_version=OPSET,
                input_names=names,
                output_names=[output],
                dynamic_shapes=free,
                verbose=False,
                external_data=False,
            )
        except torch.onnx.OnnxExporterError as problem:
            reason = str(problem).strip().splitlines()[-1:] or [type(problem).__name__]
            raise ExportError(f"torch cannot trace {output}: {reason[0]}") from problem
        finally:
            quiet.setLevel(level)
    assert program is not None
    return program.model_proto


def _compare(path: Path, module: nn.Module, names: list[str], cases: list[tuple[Tensor, ...]]) -> float:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    expected = [np.asarray(module(*case)) for case in cases]
    found = [
        session.run(None, {name: value.numpy() for name, value in zip(names, case, strict=True)})[0] for case in cases
    ]
    error = max_error(found, expected)
    limit = ERROR_LIMIT * max(1.0, *(float(np.abs(value).max()) for value in expected))
    if error > limit:
        raise ExportError(f"{path.name}: differs from torch by {error:.3g}, the limit is {limit:.3g}")
    return error
