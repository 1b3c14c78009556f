"""Narrow graphs stay near the f32 graph or are refused; int8 needs scales that were measured on the checkpoint."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from export import build as build_module
from export.build import BuildRequest, build
from export.fingerprint import NARROWING_CODE
from export.progress import Progress
from export.vision.names import PROJECTOR_FILE, TOWER_FILE
from export.vision.precision import LIMITS, _tiles, convert, scales_file
from models.vision_scales import FILE, FOLDER, write_scales
from runtime.bundle import load_bundle
from runtime.errors import ExportError
from tests.export.vision.graphs import Traced, random_tiles, run, with_weights_apart

pytestmark = pytest.mark.torch


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_narrow_graphs_stay_near_the_f32_graph(traced_nvila: Traced, tmp_path: Path, precision: Any) -> None:
    error = convert(traced_nvila.graphs, tmp_path, precision, 28, traced_nvila.root)
    assert 0 < error <= LIMITS[precision]
    tiles = random_tiles(2, 28)
    wide, narrow = (run(folder / TOWER_FILE, tiles) for folder in (traced_nvila.graphs, tmp_path))
    assert narrow.dtype == np.float32
    assert np.abs(wide - narrow).max() <= LIMITS[precision] * np.abs(wide).max()
    wanted = onnx.TensorProto.FLOAT16 if precision == "fp16" else onnx.TensorProto.INT8
    kinds = {tensor.data_type for tensor in onnx.load(tmp_path / TOWER_FILE).graph.initializer}
    assert wanted in kinds
    projector = (tmp_path / PROJECTOR_FILE).read_bytes()
    assert (projector == (traced_nvila.graphs / PROJECTOR_FILE).read_bytes()) == (precision == "int8")


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_graphs_with_weights_apart_are_narrowed_too(traced_nvila: Traced, tmp_path: Path, precision: Any) -> None:
    apart = with_weights_apart(traced_nvila.graphs, tmp_path / "source")
    for source, target in ((traced_nvila.graphs, "one"), (apart, "two")):
        (tmp_path / target).mkdir()
        convert(source, tmp_path / target, precision, 28, traced_nvila.root)
    for name in (TOWER_FILE, PROJECTOR_FILE):
        onnx.checker.check_model(str(tmp_path / "two" / name), full_check=True)
    tiles = random_tiles(2, 28)
    one, two = (run(tmp_path / folder / TOWER_FILE, tiles) for folder in ("one", "two"))
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_narrow_graph_that_leaves_the_limit_is_refused(
    traced_nvila: Traced, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: Any
) -> None:
    monkeypatch.setitem(LIMITS, precision, 1e-9)  # type: ignore[call-overload]
    with pytest.raises(ExportError, match=f"the {precision} vision tower differs by .* the limit is 1e-09"):
        convert(traced_nvila.graphs, tmp_path, precision, 28, traced_nvila.root)


def test_graphs_are_compared_on_three_small_tiles_or_a_large_one() -> None:
    for side, count in ((28, 3), (255, 3), (256, 1), (448, 1)):
        tiles = _tiles(side)
        assert tiles.shape == (count, 3, side, side)
        assert 0.4 < tiles.std() < 1 and np.abs(tiles).max() < 2, "in the range of normalised pictures"


def test_int8_without_scales_names_the_command(traced_nvila: Traced, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=f"{tmp_path}/vision_int8/vision_scales.safetensors is missing") as caught:
        convert(traced_nvila.graphs, tmp_path, "int8", 28, tmp_path)
    assert f"python -m export.quantize {tmp_path} --vision --calibration" in str(caught.value.hint)
    assert scales_file(traced_nvila.root) == traced_nvila.root / "vision_int8" / "vision_scales.safetensors"


def test_bundle_in_int8_is_built_again_when_scales_or_code_change(
    traced_nvila: Traced, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = shutil.copytree(traced_nvila.root, tmp_path / "nvila")
    request = BuildRequest(root, tmp_path / "b", group_size=64, vision_precision="int8")
    build(request, Progress())
    manifest = load_bundle(tmp_path / "b", "full").manifest
    assert manifest.vision.tower.precision == "int8"
    assert manifest.checks.limits["int8_relative_error"] == LIMITS["int8"]
    again = build(request, Progress())
    assert [stage.action for stage in again.stages] == ["unchanged", "unchanged"]
    before = (tmp_path / "b" / TOWER_FILE).read_bytes()
    write_scales(root / FOLDER / FILE, dataclasses.replace(traced_nvila.scales, alpha=0.9))
    changed = build(request, Progress())
    assert [stage.action for stage in changed.stages] == ["stored graphs", "converted", "unchanged", "skipped"]
    assert (tmp_path / "b" / TOWER_FILE).read_bytes() != before
    real = build_module.code_digest
    monkeypatch.setattr(build_module, "code_digest", lambda code: "other" if code is NARROWING_CODE else real(code))
    assert [stage.action for stage in build(request, Progress()).stages][1:3] == ["converted", "unchanged"]
    shutil.rmtree(root / FOLDER)
    with pytest.raises(ExportError, match="is missing"):
        build(dataclasses.replace(request, dry_run=True), Progress())
