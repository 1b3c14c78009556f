"""Traced graphs of tiny checkpoints and their measured scales, for the tests of what is made from them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch

from export.checkpoint import read_checkpoint
from export.fingerprint import Fingerprint
from export.stages import traced_key
from export.vision.load import load_vision
from export.vision.names import PROJECTOR_FILE, TOWER_FILE
from export.vision.stored import FOLDER as GRAPHS
from export.vision.stored import TracedGraphs, write_traced
from export.vision.trace import trace_vision
from models.smoothquant import ActivationScales, calibrate_tower
from models.vision_scales import FILE, FOLDER, write_scales


@dataclass(frozen=True)
class Traced:
    """A tiny checkpoint, the folder of its graphs, its tower in f32, and scales measured on ``calibration_tiles``."""

    root: Path
    graphs: Path
    tower: Any
    scales: ActivationScales

    @property
    def path(self) -> Path:
        return self.graphs / TOWER_FILE


def trace(root: Path, side: int = 28) -> Traced:
    """Traces a checkpoint, which takes tiles of ``side`` px, into a folder beside it."""
    checkpoint = read_checkpoint(root)
    graphs = root.parent / f"{root.name}-graphs"
    graphs.mkdir()
    trace_vision(checkpoint, graphs)
    tower = load_vision(checkpoint).tower
    return Traced(root, graphs, tower, calibrate_tower(tower, random_tiles(6, side, seed=0)).scales)


def keep(traced: Traced) -> Traced:
    """Puts graphs and scales into the checkpoint, where a build looks for them."""
    checkpoint = read_checkpoint(traced.root)
    key = traced_key(Fingerprint(checkpoint.root, checkpoint.files), checkpoint.vision_files)
    write_traced(TracedGraphs(traced.graphs, 1e-6, 1e-6, 1e-4), traced.root / GRAPHS, key)
    write_scales(traced.root / FOLDER / FILE, traced.scales)
    return traced


def with_weights_apart(folder: Path, target: Path) -> Path:
    """The graphs of ``folder`` with external data, moved there by onnx itself; returns ``target``."""
    target.mkdir()
    for name in (TOWER_FILE, PROJECTOR_FILE):
        model, data = onnx.load(str(folder / name)), f"{name}.data"
        onnx.save_model(model, str(target / name), save_as_external_data=True, location=data, size_threshold=256)
    return target


def random_tiles(count: int, side: int, seed: int = 1) -> torch.Tensor:
    """Normal noise [count, 3, side, side]."""
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def run(path: Path, tiles: torch.Tensor, *, optimized: bool = True) -> np.ndarray:
    """The features of a tower's graph in ONNX Runtime on the CPU."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    features: np.ndarray = session.run(None, {"tiles": tiles.numpy()})[0]
    return features
