"""The export matrix: torch eager = traced graph in ONNX Runtime, on every cell that combines; the rest is refused.

The table is in `tests.export.vision.matrix`. Towers and projectors are two graphs, so each is traced once a session and
serves every cell that it belongs to; ``scripts/export_matrix.py --each`` traces both for each cell by itself.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from export.checkpoint import read_checkpoint
from export.vision import trace
from export.vision.trace import trace_projector, trace_tower
from models.checkpoint import load_checkpoint
from runtime.errors import ExportError
from tests.export.vision import matrix
from tests.export.vision.matrix import CELLS, LIMIT, TOWERS, VIEWS, Cell, Graphs, measure, write_cell

pytestmark = pytest.mark.torch


@pytest.fixture(scope="session")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Graphs:
    return Graphs(tmp_path_factory.mktemp("matrix"))


def test_table_holds_every_combination_and_says_what_is_refused() -> None:
    vila = [cell for cell in CELLS if cell.layout == "vila"]
    assert len({(cell.tower, cell.view, cell.kind) for cell in vila}) == 2 * 6 * (8 + 1)
    assert {cell.kind for cell in vila if cell.refused} == {"linearclip"}
    served = {(cell.tower, cell.view) for cell in CELLS if not cell.refused and cell.kind == "linearclip"}
    assert served == {("clip", "one image")}, "LLaVA's own layout serves what VILA's does not have"
    assert len({(cell.tower, cell.view) for cell in vila}) == len(TOWERS) * len(VIEWS) == 12


@pytest.mark.parametrize("cell", [cell for cell in CELLS if not cell.refused], ids=str)
def test_traced_graphs_compute_what_torch_computes_on_every_grid(graphs: Graphs, cell: Cell) -> None:
    found = measure(graphs.checkpoint(cell), graphs.tower(cell), graphs.projector(cell))
    assert 0 <= found.tower_error <= LIMIT
    assert 0 <= found.embeds_error <= LIMIT
    # 1..12 tiles have 35 shapes, of which pictures of up to 12 x 12 choose all that differ; 9..12 tiles have 15.
    assert found.grids >= {"tiles + thumbnail": 20}.get(cell.view, 16 if cell.view.startswith("dynamic") else 1)


@pytest.mark.parametrize("cell", [cell for cell in CELLS if cell.refused], ids=str)
def test_what_does_not_combine_is_refused_by_name(cell: Cell, tmp_path: Path) -> None:
    root = write_cell(cell, tmp_path / "cell")
    with pytest.raises(ExportError, match=cell.refused):
        read_checkpoint(root)


def test_graph_traced_on_3x3_runs_on_2x5(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The grid reaches the graph through shapes alone, whatever it was traced on."""
    monkeypatch.setattr(trace, "_traced_example", lambda checkpoint: trace._example(checkpoint, SQUARES, (3, 3)))
    cell = Cell("vila", "siglip", "dynamic S² -1", "mlp_downsample_3x3_fix")
    root = write_cell(cell, tmp_path / "cell")
    checkpoint = read_checkpoint(root)
    trace_tower(checkpoint, tmp_path)
    trace_projector(checkpoint, tmp_path)
    spec = matrix.vision_section(checkpoint, "fp32").tiling_spec()
    layout = matrix.layout_for(200, 500, spec)
    assert (layout.grid, layout.num_tiles) == ((2, 5), 15)
    tiles = torch.randn(15, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    features = matrix.run(tmp_path / "vision_tower.onnx", tiles=tiles.numpy())
    embeds = matrix.project(tmp_path, spec, layout, features, checkpoint)
    with torch.no_grad():
        (expected,) = load_checkpoint(root)[0].encode_images(tiles, block_sizes=[(2, 5)])
    assert matrix.relative_error([embeds], [expected.numpy()]) <= LIMIT


SQUARES = [(1, 1), (2, 2), (3, 3)]


def test_plain_tiles_of_a_dynamic_s2_checkpoint_repeat_their_channels(tmp_path: Path) -> None:
    """dynamic_s2 with another image_aspect_ratio: no mosaic, each tile stands for all scales."""
    options = {"scales": matrix.SCALES, "aspect": "dynamic", "tower_width": matrix.WIDTH}
    root = matrix.tiny.write_nvila(tmp_path / "cell", projector="mlp_downsample_3x3_s2", **options)
    checkpoint = read_checkpoint(root)
    assert (checkpoint.repeats, checkpoint.tiling.scales_px, checkpoint.preprocess.mode) == (3, (), "dynamic")
    trace_tower(checkpoint, tmp_path)
    trace_projector(checkpoint, tmp_path)
    assert measure(root, tmp_path, tmp_path).embeds_error <= LIMIT
