"""``export.quantize --vision``: what is measured is what the whole tower in memory sees, and nothing else changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from export import quantize as command
from export.checkpoint import read_checkpoint
from export.progress import Progress
from export.quantization import vision, vision_layers
from export.quantization.request import QuantizeRequest
from export.quantization.vision import quantize_vision
from export.vision.load import load_vision
from models.checkpoint import load_checkpoint
from models.smoothquant import ALPHAS, measure_activations, read_scales
from models.tiling import dynamic_s2_preprocess, pixel_values
from runtime.errors import ExportError, OutputError, UsageError
from tests.models.tiny import picture, write_llava, write_nvila

pytestmark = pytest.mark.torch
SIZES = [(60, 40), (30, 70), (50, 50)]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for index, size in enumerate(SIZES):
        picture(*size, seed=index).save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llava(tmp_path_factory.mktemp("l") / "llava", dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def nvila(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_nvila(tmp_path_factory.mktemp("n") / "nvila")


def request(checkpoint: Path, out: Path, pictures: Path | None, **settings: Any) -> QuantizeRequest:
    return QuantizeRequest(checkpoint, out, pictures, **settings)


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def all_tiles(kind: str, processor: Any) -> torch.Tensor:
    images = [picture(*size, seed=index) for index, size in enumerate(SIZES)]
    if kind == "llava":
        return pixel_values(images, processor)
    tiles = [tile for image in images for tile in dynamic_s2_preprocess(image, (28, 56), 12, 28)[0]]
    return pixel_values(tiles, processor)


@pytest.mark.parametrize("kind", ["llava", "nvila"])
def test_scales_are_those_of_the_whole_tower_on_all_tiles(
    kind: str, pictures: Path, tmp_path: Path, llava: Path, nvila: Path
) -> None:
    root = {"llava": llava, "nvila": nvila}[kind]
    before = contents(root)
    result = quantize_vision(request(root, tmp_path / "out", pictures), Progress())
    assert contents(root) == before
    found = contents(tmp_path / "out")
    written = {"vision_int8/vision_scales.safetensors", "vision_int8/vision_scales.json"}
    assert {name: data for name, data in found.items() if name not in written} == before
    assert written <= set(found)
    scales = read_scales(tmp_path / "out" / "vision_int8" / "vision_scales.safetensors")
    model, _ = load_checkpoint(root)
    tower = model.get_vision_tower()
    tiles = all_tiles(kind, tower.image_processor)
    expected = measure_activations(tower, [tiles])
    assert scales.tiles == len(tiles) > 2
    assert scales.maxima.keys() == expected.maxima.keys()
    for name in expected.maxima:
        np.testing.assert_allclose(scales.maxima[name], expected.maxima[name], rtol=1e-4, atol=1e-6)
        np.testing.assert_array_equal(scales.weight_maxima[name], expected.weight_maxima[name])
    record = json.loads(found["vision_int8/vision_scales.json"])
    assert record == result.record
    errors = {float(alpha): error for alpha, error in record["feature_errors"].items()}
    assert set(errors) == set(ALPHAS)
    assert record["alpha"] == scales.alpha == min(errors, key=lambda alpha: errors[alpha])
    assert 0 < min(errors.values()) < 0.06
    assert (record["layers"], record["tiles"], len(record["calibration_digest"])) == (2, len(tiles), 64)
    load_checkpoint(tmp_path / "out")


def test_pieces_of_static_s2_are_what_is_measured(pictures: Path, tmp_path: Path) -> None:
    extra = {"dynamic_s2": False, "s2": True}
    root = write_nvila(tmp_path / "s2", scales=(28, 56), aspect="resize", extra=extra)
    quantize_vision(request(root, tmp_path / "out", pictures), Progress())
    scales = read_scales(tmp_path / "out" / "vision_int8" / "vision_scales.safetensors")
    tower = load_vision(read_checkpoint(root)).tower
    images = [picture(*size, seed=index) for index, size in enumerate(SIZES)]
    expected = measure_activations(tower, [pixel_values(images, tower.image_processor)])
    assert scales.tiles == 3 * (1 + 4)
    for name, value in expected.maxima.items():
        np.testing.assert_allclose(scales.maxima[name], value, rtol=1e-4, atol=1e-6)


def test_many_tiles_are_thinned_evenly(
    nvila: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vision, "MAX_TILES", 7)
    quantize_vision(request(nvila, tmp_path / "out", pictures), Progress())
    assert read_scales(tmp_path / "out" / "vision_int8" / "vision_scales.safetensors").tiles == 6
    states = torch.arange(10.0)[:, None, None]
    assert [float(state) for state in vision_layers._spread(states, 4)] == [0, 2, 5, 7]
    assert len(vision_layers._spread(states, 99)) == 10


def test_one_layer_is_in_memory_at_a_time(
    nvila: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[bool]] = []
    towers: list[Any] = []
    original, load = vision_layers.calibrate_layers, vision_layers.load_vision

    def loaded(checkpoint: Any) -> Any:
        modules = load(checkpoint)
        towers.append(modules.tower)
        return modules

    def watched(hidden: Any, layers: Any, **settings: Any) -> Any:
        def watching() -> Any:
            for layer in layers:
                encoder = towers[0].vision_tower.encoder.layers
                seen.append([all(p.is_meta for p in other.parameters()) for other in encoder])
                assert all(p.is_meta for p in towers[0].vision_tower.embeddings.parameters())
                yield layer

        return original(hidden, watching(), **settings)

    monkeypatch.setattr(vision_layers, "calibrate_layers", watched)
    monkeypatch.setattr(vision_layers, "load_vision", loaded)
    quantize_vision(request(nvila, tmp_path / "out", pictures), Progress())
    assert seen == [[False, True, True], [True, False, True]]


def test_interrupted_run_leaves_nothing(
    llava: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(vision, "_record", stop)
    with pytest.raises(KeyboardInterrupt):
        quantize_vision(request(llava, tmp_path / "out", pictures), Progress())
    assert list(tmp_path.iterdir()) == []


def test_only_what_this_command_wrote_is_replaced(llava: Path, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    quantize_vision(request(llava, out, pictures), Progress())
    with pytest.raises(OutputError, match="measured checkpoint is there") as caught:
        quantize_vision(request(llava, out, pictures), Progress())
    assert "--force" in str(caught.value.hint)
    (out / "note.txt").write_text("mine")
    quantize_vision(request(llava, out, pictures, force=True), Progress())
    assert not (out / "note.txt").exists()
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text("{}")
    with pytest.raises(OutputError, match="with other files"):
        quantize_vision(request(llava, other, pictures, force=True), Progress())
    assert (other / "config.json").read_text() == "{}"


def test_what_cannot_be_measured_is_refused_before_anything_is_written(
    llava: Path, pictures: Path, tmp_path: Path
) -> None:
    out, texts = tmp_path / "out", tmp_path / "texts.txt"
    texts.write_text("a text\n")
    with pytest.raises(UsageError, match="pictures"):
        quantize_vision(request(llava, out, None), Progress())
    with pytest.raises(UsageError, match="none of its prompts has a picture"):
        quantize_vision(request(llava, out, texts), Progress())
    with pytest.raises(UsageError, match="on the CPU, not on cuda"):
        quantize_vision(request(llava, out, pictures, device="cuda"), Progress())
    with pytest.raises(UsageError, match="lie in each other"):
        quantize_vision(request(llava, llava / "inside", pictures), Progress())
    with pytest.raises(ExportError, match="no such folder"):
        quantize_vision(request(tmp_path / "nowhere", out, pictures), Progress())
    result = quantize_vision(request(llava, out, pictures, dry_run=True), Progress())
    assert (result.record, result.plan["pictures"]) == (None, 3)
    assert not out.exists()


def test_weights_are_linked_and_settings_copied(llava: Path, pictures: Path, tmp_path: Path) -> None:
    (llava / ".cache").mkdir(exist_ok=True)
    (llava / ".cache" / "download").write_text("")
    quantize_vision(request(llava, tmp_path / "out", pictures), Progress())
    assert not (tmp_path / "out" / ".cache").exists()
    same = [(llava / name).samefile(tmp_path / "out" / name) for name in ("model.safetensors", "config.json")]
    assert same == [True, False]
    (llava / ".cache" / "download").unlink()
    (llava / ".cache").rmdir()


def test_command_measures_and_the_decoder_may_be_quantised_first(
    nvila: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    decoder, both = tmp_path / "decoder", tmp_path / "both"
    rtn = ["--method", "rtn", "--head-bits", "4", "--group-size", "32"]
    assert command.main([str(nvila), "--out", str(decoder), *rtn]) == 0
    measured = ["--vision", "--calibration", str(pictures), "--json"]
    capsys.readouterr()
    assert command.main([str(decoder), "--out", str(both), *measured]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["quantization"]["layers"] == 2
    assert (both / "quantization.json").read_bytes() == (decoder / "quantization.json").read_bytes()
    assert (both / "vision_int8" / "vision_scales.safetensors").is_file()
    assert command.main([str(decoder), "--out", str(both), *measured]) == 8
