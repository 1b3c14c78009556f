"""The smoothing formula and its file; numpy alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from models.vision_scales import (
    LINEARS,
    ActivationScales,
    linear_name,
    quantize_rows,
    read_scales,
    smoothing_scales,
    weight_scales,
    write_scales,
)
from runtime.errors import ExportError


def example(layers: int = 2, channels: int = 5) -> ActivationScales:
    source = np.random.default_rng(0)
    names = [linear_name(layer, linear) for layer in range(layers) for linear in LINEARS]
    activations = {name: source.uniform(0, 3, channels).astype(np.float32) for name in names}
    weights = {name: source.uniform(0, 1, channels).astype(np.float32) for name in names}
    return ActivationScales(activations, weights, alpha=0.45, tiles=7)


def test_smoothing_is_the_published_formula_with_floors() -> None:
    activation, weight = np.array([8, 2, 0], np.float32), np.array([0.5, 0, 4], np.float32)
    expected = [8**0.3 / 0.5**0.7, 2**0.3 / 1e-5**0.7, 1e-5**0.3 / 4**0.7]
    np.testing.assert_allclose(smoothing_scales(activation, weight, 0.3), expected, rtol=1e-6)
    tiny = smoothing_scales(np.zeros(1, np.float32), np.full(1, 100, np.float32), 1.0)
    np.testing.assert_allclose(tiny, [1e-5], rtol=1e-6)
    with pytest.raises(ExportError, match="alpha is 1.5"):
        smoothing_scales(activation, weight, 1.5)


def test_smoothing_undoes_a_rescaling_of_norm_and_columns_for_every_alpha() -> None:
    activation, weight = np.array([1, 2, 3], np.float32), np.array([0.1, 0.2, 0.3], np.float32)
    factor = np.array([64, 1, 8], np.float32)
    for alpha in (0.0, 0.3, 0.5, 1.0):
        before = smoothing_scales(activation, weight, alpha)
        after = smoothing_scales(activation * factor, weight / factor, alpha)
        np.testing.assert_allclose(after, before * factor, rtol=1e-5)


def test_input_scale_covers_the_largest_value_after_smoothing() -> None:
    name = linear_name(0, "self_attn.q_proj")
    scales = ActivationScales({name: np.array([6, 2], np.float32)}, {})
    assert scales.input_scale(0, "self_attn.q_proj", None) == pytest.approx(6 / 127)
    assert scales.input_scale(0, "self_attn.q_proj", np.array([6, 1], np.float32)) == pytest.approx(2 / 127)
    silent = ActivationScales({name: np.zeros(2, np.float32)}, {})
    assert silent.input_scale(0, "self_attn.q_proj", None) == pytest.approx(1e-5 / 127)


def test_weights_are_symmetric_by_row_and_a_row_of_zeros_stays_zero() -> None:
    weight = np.array([[-2.0, 1.0, 0.5], [0, 0, 0], [1e-9, 0, -1e-9]], np.float32)
    scales = weight_scales(weight)
    np.testing.assert_allclose(scales, [2 / 127, 1e-5 / 127, 1e-5 / 127], rtol=1e-6)
    np.testing.assert_array_equal(quantize_rows(weight, scales), [[-127, 64, 32], [0, 0, 0], [0, 0, 0]])


def test_file_gives_back_what_was_written(tmp_path: Path) -> None:
    scales = example()
    write_scales(tmp_path / "deep" / "s.safetensors", scales)
    found = read_scales(tmp_path / "deep" / "s.safetensors")
    assert (found.alpha, found.tiles, found.layers) == (0.45, 7, 2)
    for ours, theirs in ((found.maxima, scales.maxima), (found.weight_maxima, scales.weight_maxima)):
        assert ours.keys() == theirs.keys()
        assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_published_table_without_our_additions_is_read(tmp_path: Path) -> None:
    names = [f"vision_tower.vision_model.encoder.layers.{i}.{linear}" for i in range(3) for linear in LINEARS]
    others = ["vision_tower.vision_model.head.mlp.fc1", "mm_projector.layers.2"]
    save_file({name: np.full(4, 2, np.float16) for name in names + others}, tmp_path / "act.safetensors")
    found = read_scales(tmp_path / "act.safetensors")
    assert (found.layers, found.alpha, found.weight_maxima) == (3, 0.3, {})
    assert found.maxima[names[0]].dtype == np.float32


@pytest.mark.parametrize("fault", ["cut", "lacks", "nan", "negative", "matrix", "alpha", "empty", "stray"])
def test_damaged_file_is_refused_by_name(tmp_path: Path, fault: str) -> None:
    path = tmp_path / "vision_int8" / "vision_scales.safetensors"
    write_scales(path, example())
    scales = example()
    name = linear_name(1, "mlp.fc2")
    values = dict(scales.maxima)
    metadata = {"alpha": "0.3"}
    if fault == "cut":
        path.write_bytes(path.read_bytes()[:-9])
    else:
        if fault == "lacks":
            del values[name]
        elif fault == "empty":
            values = {"else": np.ones(2, np.float32)}
        elif fault == "alpha":
            metadata = {"alpha": "two"}
        elif fault == "stray":
            values["vision_tower.other.weight_max"] = np.ones(2, np.float32)
        else:
            wrong = {"nan": np.full(5, np.nan), "negative": np.full(5, -1.0), "matrix": np.ones((5, 1))}
            values[name] = wrong[fault].astype(np.float32)
        save_file(values, path, metadata=metadata)
    with pytest.raises(ExportError) as caught:
        read_scales(path)
    assert str(path) in caught.value.message
    assert f"export.quantize {tmp_path} --vision" in str(caught.value.hint)
    if fault in ("lacks", "nan", "negative", "matrix"):
        assert name in caught.value.message
