"""Vision graphs that compute in fewer bits, made from the traced f32 graphs. onnx and onnxruntime; no torch."""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from export.vision.names import PROJECTOR_FILE, TOWER_FILE
from export.vision.sessions import open_graph
from export.vision.weights import data_file
from models.vision_scales import FILE, FOLDER, read_scales
from runtime.bundle.manifest import VisionPrecision
from runtime.errors import ExportError

# Largest difference from the f32 graph, relative to its largest value.
LIMITS: Mapping[VisionPrecision, float] = {"fp16": 2e-2, "int8": 2e-1}
_TILES, _PATCHES = 3, 7
_LARGE_PX = 256  # one tile of this size or more has values enough, and takes seconds
_HINT = "use --vision-precision fp32"


def convert(source: Path, target: Path, precision: VisionPrecision, tile_px: int, checkpoint: Path) -> float:
    """Writes both graphs of ``source`` in ``precision`` into ``target``; returns the tower's relative error.

    "fp16": every operator in f16, inputs and outputs f32. "int8": the linear layers of the tower's encoder in int8 with
    the scales that were measured for ``checkpoint`` (``export.vision.int8_graph``), the rest and the projector in f32.
    Raises ExportError when there are no scales, when they were measured on other weights, when the result leaves
    ``LIMITS``, or onnxruntime is not installed.
    """
    try:
        importlib.import_module("onnxruntime")
    except ImportError as problem:
        raise ExportError(
            f"--vision-precision {precision} needs onnxruntime", hint="pip install onnxruntime"
        ) from problem
    if precision == "fp16":
        from export.vision.half_graph import write_half_graph

        for name in (TOWER_FILE, PROJECTOR_FILE):
            write_half_graph(source / name, target / name)
    else:
        _to_int8(source, target, checkpoint)
    few = 1 if data_file(source / TOWER_FILE).exists() else _TILES  # activations of a large tile take a gigabyte
    tiles = _tiles(tile_px)[:few]
    want, found = (_run(folder / TOWER_FILE, tiles) for folder in (source, target))
    error = float(np.abs(found - want).max() / np.abs(want).max())
    if not error <= LIMITS[precision]:
        message = f"the {precision} vision tower differs by {error:.3g} of its largest value, the limit is"
        raise ExportError(f"{message} {LIMITS[precision]:.3g}", hint=_HINT)
    return error


def scales_file(checkpoint: Path) -> Path:
    """Where the activation maxima of a checkpoint's vision tower lie. Raises ExportError when they do not."""
    path = checkpoint / FOLDER / FILE
    if not path.is_file():
        raise ExportError(
            f"--vision-precision int8: {path} is missing, no activations were measured",
            hint=f"python -m export.quantize {checkpoint} --vision --calibration <images> --out <dir>; export <dir>",
        )
    return path


def _to_int8(source: Path, target: Path, checkpoint: Path) -> None:
    from export.vision.int8_graph import write_int8_tower

    write_int8_tower(source / TOWER_FILE, target / TOWER_FILE, read_scales(scales_file(checkpoint)))
    for path in source.glob(f"{PROJECTOR_FILE}*"):  # with its external data
        shutil.copyfile(path, target / path.name)


def _tiles(side: int) -> np.ndarray[Any, Any]:
    """Normalised tiles [T, 3, side, side] of smooth colours with a little noise: nearer to pictures than noise is."""
    source, count = np.random.default_rng(0), _TILES if side < _LARGE_PX else 1
    coarse = source.uniform(-1.5, 1.5, (count, 3, _PATCHES, _PATCHES))
    places = np.linspace(0, _PATCHES - 1, side)
    weights = np.maximum(0.0, 1.0 - np.abs(places[:, None] - np.arange(_PATCHES)))
    tiles: np.ndarray[Any, Any] = weights @ coarse @ weights.T + source.normal(0.0, 0.05, (count, 3, side, side))
    return tiles.astype(np.float32)


def _run(path: Path, tiles: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    session = open_graph(path)
    features: np.ndarray[Any, Any] = session.run(None, {session.get_inputs()[0].name: tiles})[0]
    return features
