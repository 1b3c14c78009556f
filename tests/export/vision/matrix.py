"""The export matrix: every vision tower x view x projector, as tiny checkpoints with random weights.

Beside each cell stands why it is refused, if it is. `test_matrix` runs all cells on graphs that it traces once a
session, ``scripts/export_matrix.py`` too, or, with ``--each``, traces every cell by itself.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch

from export.checkpoint import Checkpoint, read_checkpoint
from export.manifest_groups import vision_section
from export.vision.names import FEATURES, PROJECTOR_FILE, TOWER_FILE, TOWER_INPUT, scale_inputs
from export.vision.trace import trace_projector, trace_tower
from models.checkpoint import load_checkpoint
from models.nvila import NVILAQwen2
from runtime.tiling import TileLayout, TilingSpec, layout_for, s2_matrices
from tests.models import tiny

F32 = npt.NDArray[np.float32]
LIMIT = 1e-5  # of the largest value
TILE_PX, PATCH_PX, WIDTH, HIDDEN = 28, 7, 24, 64
SCALES, MAX_TILES = (28, 56, 84), 12

TOWERS = ("clip", "siglip")
VIEWS = ("one image", "tiles + thumbnail", "static S²", "dynamic S² 0", "dynamic S² 1", "dynamic S² -1")
VILA_KINDS = (
    *("linear", "mlp2x_gelu", "identity", "mlp_downsample", "mlp_downsample_2x2_fix"),
    *("mlp_downsample_3x3_fix", "mlp_downsample_3x3_s2", "mlp_downsample_3x3_s2_new"),
)
ORIGINAL_KINDS = ("linear", "mlp2x_gelu", "identity", "linearclip")
Layout = Literal["vila", "llava-original", "llava-hf"]


@dataclass(frozen=True)
class Cell:
    """One combination. ``refused`` is what the exporter says to it, "" for one that is served."""

    layout: Layout
    tower: str
    view: str
    kind: str
    refused: str = ""

    def __str__(self) -> str:
        return f"{self.layout} {self.tower} {self.view} {self.kind}"

    @property
    def maps(self) -> int:
        """Maps that lie side by side in what the projector sees."""
        return len(SCALES) if "S²" in self.view else 1

    @property
    def hidden(self) -> int:
        return WIDTH * self.maps if self.kind == "identity" else HIDDEN

    @property
    def index(self) -> int:
        """s2_resize_output_to_scale_idx."""
        return int(self.view.rsplit(" ", 1)[1]) if self.view.startswith("dynamic") else 0

    @property
    def projector_key(self) -> tuple[Any, ...]:
        """What the projector's graph depends on: neither the tower nor the scale that the output is resized to."""
        seen = self.view.rsplit(" ", 1)[0] if self.view.startswith("dynamic") else "S²" in self.view
        return (self.layout, seen, self.kind, self.layout == "llava-hf" and self.tower)


def _cells() -> list[Cell]:
    every = [Cell("vila", *parts) for parts in itertools.product(TOWERS, VIEWS, VILA_KINDS)]
    # linearclip is LLaVA's alone, and LLaVA's own layout shows CLIP one image.
    every += [
        Cell("vila", tower, view, "linearclip", "mm_projector_type is 'linearclip'")
        for tower, view in itertools.product(TOWERS, VIEWS)
    ]
    every += [Cell("llava-original", "clip", VIEWS[0], kind) for kind in ORIGINAL_KINDS]
    every += [
        Cell("llava-original", "siglip", VIEWS[0], kind, "a SigLIP tower with LLaVA's own layout")
        for kind in ORIGINAL_KINDS
    ]
    reasons = {VIEWS[1]: "image_aspect_ratio is 'dynamic'", VIEWS[2]: "s2 with LLaVA's own layout"}
    every += [
        Cell("llava-original", "clip", view, kind, reasons.get(view, "dynamic_s2 with LLaVA's own layout"))
        for view, kind in itertools.product(VIEWS[1:], ORIGINAL_KINDS)
    ]
    return every + [Cell("llava-hf", tower, VIEWS[0], "mlp2x_gelu") for tower in TOWERS]


CELLS = _cells()


def write_cell(cell: Cell, target: Path) -> Path:
    """The checkpoint of a cell. Towers of one kind have the same weights everywhere, projectors of one key too."""
    if cell.layout == "vila":
        return _write_vila(cell, target)
    if cell.layout == "llava-hf":
        return tiny.write_llava(target, siglip=cell.tower == "siglip")
    views = {
        VIEWS[0]: {},
        VIEWS[1]: {"image_aspect_ratio": "dynamic"},
        VIEWS[2]: {"s2": True, "s2_scales": "28,56,84"},
    }
    extra = views.get(cell.view, {"dynamic_s2": True, "s2_scales": "28,56,84"})
    root = tiny.write_original_llava(target, projector=cell.kind, extra=extra)
    if cell.tower == "siglip":
        shutil.rmtree(root / "vision_tower")
        tiny.write_tower(root / "vision_tower", TILE_PX, PATCH_PX, WIDTH, clip=False)
    return root


def _write_vila(cell: Cell, target: Path) -> Path:
    static = cell.view == "static S²"
    root = tiny.write_nvila(
        target,
        scales=SCALES if "S²" in cell.view else None,
        static=static,
        resize_output_to_scale_idx=cell.index,
        aspect="resize" if cell.view == "one image" or static else None,
        projector=cell.kind if cell.kind in VILA_KINDS else "linear",
        clip=cell.tower == "clip",
        hidden=cell.hidden,
        max_tiles=MAX_TILES,
        tower_width=WIDTH,
    )
    for part in ("vision_tower", "mm_projector"):
        shutil.rmtree(root / part)
    torch.manual_seed(1)
    tiny.write_tower(root / "vision_tower", TILE_PX, PATCH_PX, WIDTH, clip=cell.tower == "clip")
    torch.manual_seed(2)
    kind = cell.kind if cell.kind in VILA_KINDS else "linear"
    tiny.write_projector(root / "mm_projector", kind, WIDTH * cell.maps, cell.hidden)
    (root / "mm_projector" / "config.json").write_text(json.dumps({"mm_projector_type": cell.kind}))
    return root


class Graphs:
    """Checkpoints of cells, and the graphs that several of them share, traced when they are first asked for.

    ``each``: every cell has its own.
    """

    def __init__(self, root: Path, *, each: bool = False) -> None:
        self._root, self._each = root, each
        self._folders: dict[Any, Path] = {}

    def checkpoint(self, cell: Cell) -> Path:
        if cell not in self._folders:
            self._folders[cell] = write_cell(cell, self._root / f"cell{len(self._folders)}")
        return self._folders[cell]

    def tower(self, cell: Cell) -> Path:
        """Plain tiles, a thumbnail and the tiles of dynamic S² go through one and the same graph."""
        return self._traced(("tower", cell.layout, cell.tower, cell.view == "static S²"), cell, trace_tower)

    def projector(self, cell: Cell) -> Path:
        return self._traced(("projector", *cell.projector_key), cell, trace_projector)

    def _traced(self, key: tuple[Any, ...], cell: Cell, trace_one: Callable[[Checkpoint, Path], float]) -> Path:
        key = (*key, cell) if self._each else key
        if key not in self._folders:
            folder = self._root / f"graph{len(self._folders)}"
            folder.mkdir()
            trace_one(read_checkpoint(self.checkpoint(cell)), folder)
            self._folders[key] = folder
        return self._folders[key]


@dataclass(frozen=True)
class Found:
    """Largest errors of a cell, each relative to the largest value, and how many grids they were measured on."""

    tower_error: float
    embeds_error: float
    grids: int


def measure(root: Path, tower: Path, projector: Path) -> Found:
    """Torch through the models' classes against the graphs in the folders ``tower`` and ``projector``.

    Every grid of the configuration in one batch, with a plain block in it where the family has one.
    """
    checkpoint = read_checkpoint(root)
    spec = vision_section(checkpoint, "fp32").tiling_spec()
    layouts = grids_of(spec)
    side = checkpoint.tiling.tile_px
    source = np.random.default_rng(3)
    tiles = [source.standard_normal((layout.num_tiles, 3, side, side), np.float32) for layout in layouts]
    model = _model(root, checkpoint)
    batch = torch.from_numpy(np.concatenate(tiles))
    with torch.no_grad():
        features = model.get_vision_tower()(batch).numpy()
        expected = _embeds(model, checkpoint, batch, layouts)
    found = run(tower / TOWER_FILE, **{TOWER_INPUT: np.concatenate(tiles)})
    tower_error = relative_error([found], [features])
    parts = np.split(found, np.cumsum([layout.num_tiles for layout in layouts])[:-1])
    embeds = [project(projector, spec, layout, part, checkpoint) for layout, part in zip(layouts, parts, strict=True)]
    return Found(tower_error, relative_error(embeds, expected), len(layouts))


def grids_of(spec: TilingSpec) -> list[TileLayout]:
    """The layout of every grid that the configuration can choose, square or not; a plain block last."""
    if spec.mode not in ("dynamic", "dynamic_s2"):
        return [layout_for(90, 60, spec)] * 2
    sides = range(1, spec.max_tiles + 1)
    layouts = {}
    for rows, cols in itertools.product(sides, sides):
        layout = layout_for(rows * 100, cols * 100, spec)
        layouts[layout.grid] = layout
    plain = [layout_for(50, 50, TilingSpec("resize", spec.tile_px, spec.patches_per_side, downsample=spec.downsample))]
    return [*layouts.values(), *(plain if spec.mode == "dynamic_s2" else [])]


def project(folder: Path, spec: TilingSpec, layout: TileLayout, features: F32, checkpoint: Checkpoint) -> F32:
    """The projector's graph on one picture, as the runtime feeds it."""
    names = [name for pair in scale_inputs(len(checkpoint.tiling.scales_px)) for name in pair]
    matrices = [matrix for pair in s2_matrices(layout, spec) for matrix in pair]
    if names and not layout.multi_scale:
        features = np.repeat(features, len(spec.scales_px), axis=0)
    return run(folder / PROJECTOR_FILE, **{FEATURES: features}, **dict(zip(names, matrices, strict=True)))


def _model(root: Path, checkpoint: Checkpoint) -> Any:
    if checkpoint.layout == "vila":
        return NVILAQwen2.load_pretrained(root, llm=False)
    return load_checkpoint(root)[0]


def _embeds(model: Any, checkpoint: Checkpoint, batch: torch.Tensor, layouts: list[TileLayout]) -> list[F32]:
    """Rows of each picture from the models' own ``encode_images``, all pictures in one call."""
    if checkpoint.tiling.scales_px:
        blocks = [layout.grid if layout.multi_scale else None for layout in layouts]
        return [rows.numpy() for rows in model.encode_images(batch, block_sizes=blocks)]
    by_tile = torch.split(model.encode_images(batch), [layout.num_tiles for layout in layouts])
    return [rows.flatten(0, 1).numpy() for rows in by_tile]


def run(path: Path, **inputs: F32) -> F32:
    """A graph's one output on the CPU."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    result: F32 = session.run(None, inputs)[0]
    return result


def relative_error(found: list[F32], expected: list[F32]) -> float:
    """Largest difference over pairs of arrays of one shape, relative to the largest expected value."""
    assert [array.shape for array in found] == [array.shape for array in expected]
    largest = max(float(np.abs(array).max()) for array in expected)
    assert np.isfinite(largest) and largest > 0.05, "a model that says nothing would prove nothing"
    return max(float(np.abs(a - b).max()) for a, b in zip(found, expected, strict=True)) / largest
