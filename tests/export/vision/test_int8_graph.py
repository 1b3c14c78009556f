"""The int8 graph computes what the torch reference of static W8A8 computes, and obeys TensorRT's rules for Q/DQ."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from export.vision.encoder_graph import Constants, encoder_layers, load_graph
from export.vision.graph import operators
from export.vision.int8_graph import write_int8_tower
from export.vision.names import OPSET, TOWER_FILE
from models.smoothquant import ActivationScales, feature_error, linear_name, w8a8_tower
from models.vision_scales import LINEARS
from runtime.errors import ExportError
from tests.export.vision.graphs import Traced, random_tiles, run, trace, with_weights_apart
from tests.models.tiny import write_llava, write_nvila

pytestmark = pytest.mark.torch

# What onnx-tensorrt 10.3 parses; no DynamicQuantizeLinear, MatMulInteger or QLinearMatMul among them.
ALLOWED = {
    *("Add", "Cast", "Concat", "Conv", "DequantizeLinear", "Div", "Erf", "Expand", "Gather", "Gemm"),
    *("LayerNormalization", "MatMul", "Mul", "Pow", "QuantizeLinear", "Reshape", "Shape", "Sigmoid", "Slice"),
    *("Softmax", "Sqrt", "Sub", "Tanh", "Transpose", "Unsqueeze"),
}


@pytest.fixture(scope="module")
def one_layer(tmp_path_factory: pytest.TempPathFactory) -> Traced:
    return trace(write_llava(tmp_path_factory.mktemp("o") / "one", select_layer=1))


def error(found: np.ndarray, expected: Any) -> float:
    return feature_error([torch.from_numpy(found)], [torch.as_tensor(expected)])


@pytest.mark.parametrize("optimized", [False, True])
def test_one_layer_equals_the_torch_reference(one_layer: Traced, tmp_path: Path, optimized: bool) -> None:
    write_int8_tower(one_layer.path, tmp_path / "t.onnx", one_layer.scales)
    reference = w8a8_tower(one_layer.tower, one_layer.scales, static=True)
    for count in (1, 4):
        tiles = random_tiles(count, 28, seed=count)
        found = run(tmp_path / "t.onnx", tiles, optimized=optimized)
        np.testing.assert_allclose(found, reference(tiles), rtol=0, atol=2e-5)


@pytest.mark.parametrize("family", ["traced_llava", "traced_nvila"])
def test_deeper_graph_differs_from_the_reference_far_less_than_int8_from_f32(
    family: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    traced: Traced = request.getfixturevalue(family)
    write_int8_tower(traced.path, tmp_path / "t.onnx", traced.scales)
    reference = w8a8_tower(traced.tower, traced.scales, static=True)
    tiles = random_tiles(5, 28)
    found = run(tmp_path / "t.onnx", tiles)
    lost = error(found, traced.tower(tiles))
    assert 1e-3 < lost < 0.06
    # A value on the border between two integers may fall either way, and the next layer sees that.
    assert error(found, reference(tiles)) < 0.25 * lost


@pytest.mark.parametrize("family", ["traced_llava", "traced_nvila"])
def test_graph_obeys_the_rules_of_explicit_quantisation(
    family: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    traced: Traced = request.getfixturevalue(family)
    write_int8_tower(traced.path, tmp_path / "t.onnx", traced.scales)
    model = onnx.load(tmp_path / "t.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [(item.domain, item.version) for item in model.opset_import] == [("", OPSET)]
    assert 17 <= OPSET <= 19, "what TensorRT 10.3 reads"
    counts = operators(model)
    assert set(counts) <= ALLOWED
    layers = 2
    assert counts["QuantizeLinear"] == 4 * layers, "q, k and v share one"
    assert counts["DequantizeLinear"] == (4 + 6) * layers
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    made_by = {output: node for node in model.graph.node for output in node.output}
    for node in model.graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        scale, zero = constants[node.input[1]], constants[node.input[2]]
        assert scale.dtype == np.float32 and (scale > 0).all() and np.isfinite(scale).all()
        assert zero.dtype == np.int8 and not zero.any() and zero.shape == scale.shape
        if node.input[0] in constants:  # a weight
            values = constants[node.input[0]]
            axis = node.attribute[0].i
            assert values.dtype == np.int8 and values.ndim == 2 and scale.shape == (values.shape[axis],)
            assert np.abs(values.astype(int)).max(axis=1 - axis).max() == 127 and values.min() >= -127
        else:
            assert scale.shape == ()
        if node.op_type == "DequantizeLinear" and node.input[0] not in constants:
            assert made_by[node.input[0]].op_type == "QuantizeLinear"
            assert list(made_by[node.input[0]].input[1:]) == list(node.input[1:])
    quantised = [node for node in model.graph.node if all(_from_dq(name, made_by) for name in node.input)]
    assert sum(node.op_type == "MatMul" for node in quantised) == 6 * layers


def _from_dq(name: str, made_by: dict[str, Any]) -> bool:
    return name in made_by and made_by[name].op_type == "DequantizeLinear"


def test_weights_are_the_smoothed_ones_by_hand(traced_llava: Traced, tmp_path: Path) -> None:
    write_int8_tower(traced_llava.path, tmp_path / "t.onnx", traced_llava.scales)
    model = onnx.load(tmp_path / "t.onnx")
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    name, alpha = linear_name(1, "mlp.fc1"), traced_llava.scales.alpha
    weight = traced_llava.tower.vision_tower.encoder.layers[1].mlp.fc1.weight.double().numpy()
    smoothing = traced_llava.scales.maxima[name].astype(np.float64) ** alpha / np.abs(weight).max(0) ** (1 - alpha)
    rows = weight * smoothing
    scales = np.abs(rows).max(1) / 127
    np.testing.assert_allclose(constants[f"{name}.weight_scale"], scales, rtol=1e-5)
    off = constants[f"{name}.weight_int8"].T - rows / scales[:, None]
    assert np.abs(off).max() <= 0.5001
    largest = (traced_llava.scales.maxima[name] / smoothing).max()
    assert constants[f"{name}.input_scale"] == pytest.approx(largest / 127, rel=1e-5)
    norm = traced_llava.tower.vision_tower.encoder.layers[1].layer_norm2
    bias = norm.bias.double().numpy() / smoothing
    np.testing.assert_allclose(constants["layers.1.layer_norm2.bias_smoothed"], bias, rtol=1e-5)


def test_external_weights_are_read_and_written_apart(traced_nvila: Traced, tmp_path: Path) -> None:
    source = with_weights_apart(traced_nvila.graphs, tmp_path / "apart") / TOWER_FILE
    target = tmp_path / "out" / "vision_tower.onnx"
    target.parent.mkdir()
    write_int8_tower(source, target, traced_nvila.scales)
    stored = load_graph(target).graph.initializer
    external = {t.name for t in stored if t.data_location == TensorProto.EXTERNAL}
    assert f"{linear_name(0, 'mlp.fc1')}.weight_int8" not in external, "432 bytes stay in the graph"
    assert "tower.vision_tower.embeddings.patch_embedding.weight" in external
    assert max(len(t.raw_data) for t in stored) < 1024
    write_int8_tower(traced_nvila.path, tmp_path / "inline.onnx", traced_nvila.scales)
    tiles = random_tiles(2, 28)
    np.testing.assert_array_equal(run(target, tiles), run(tmp_path / "inline.onnx", tiles))


def test_writing_again_gives_the_same_bytes(traced_llava: Traced, tmp_path: Path) -> None:
    for name in ("a.onnx", "b.onnx"):
        write_int8_tower(traced_llava.path, tmp_path / name, traced_llava.scales)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_layers_are_found_where_norms_and_biases_share_their_constants(traced_llava: Traced, tmp_path: Path) -> None:
    """Untrained towers have norms of ones and biases of zeros, which an optimiser may store once."""
    model = onnx.load(traced_llava.path)
    norms = [node for node in model.graph.node if node.op_type == "LayerNormalization"]
    for node in norms:
        node.input[1:] = norms[-1].input[1:]
    onnx.save(model, tmp_path / "shared.onnx")
    free = dataclasses.replace(traced_llava.scales, alpha=1.0)
    write_int8_tower(tmp_path / "shared.onnx", tmp_path / "t.onnx", free)
    graph = onnx.load(tmp_path / "t.onnx").graph
    taken = [node.input[1] for node in graph.node if node.op_type == "LayerNormalization"]
    assert len(set(taken)) == len(taken) == 5, "each has its own now, the first one its old"


def test_weight_taken_by_a_gemm_is_understood(tmp_path: Path) -> None:
    """Two dimensions and transB, as other exporters write linear layers; one token after the other."""
    source = np.random.default_rng(0)
    width, names = 6, dict(zip(LINEARS, ("q", "k", "v", "o", "f", "g"), strict=True))
    rows = {name: source.normal(size=(width, width)).astype(np.float32) for name in names.values()}
    gemm = {name: ([f"{name}_in", name], [f"{name}_out"]) for name in rows}
    ones = numpy_helper.from_array(np.ones(width, np.float32), "ones")
    inputs = {"q": "n1", "k": "n1", "v": "n1", "o": "mixed", "f": "n2", "g": "f_out"}
    nodes = [helper.make_node("LayerNormalization", ["x", "ones"], ["n1"])]
    for name in ("q", "k", "v"):
        nodes.append(helper.make_node("Gemm", [inputs[name], name], gemm[name][1], transB=1))
    nodes += [helper.make_node("Sum", ["q_out", "k_out", "v_out"], ["mixed"])]
    nodes += [helper.make_node("Gemm", ["mixed", "o"], ["o_out"], transB=1)]
    nodes += [helper.make_node("LayerNormalization", ["o_out", "ones"], ["n2"])]
    nodes += [helper.make_node("Gemm", ["n2", "f"], ["f_out"], transB=1)]
    nodes += [helper.make_node("Gemm", ["f_out", "g"], ["g_out"], transB=1)]
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["T", width]) for name in ("x", "g_out")]
    stored = [ones, *(numpy_helper.from_array(row, name) for name, row in rows.items())]
    graph = helper.make_graph(nodes, "g", value[:1], value[1:], stored)
    opsets = [helper.make_opsetid("", OPSET)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "g.onnx")
    largest = {linear_name(0, linear): np.full(width, 8, np.float32) for linear in LINEARS}
    columns = {linear_name(0, linear): np.abs(rows[name]).max(0) for linear, name in names.items()}
    write_int8_tower(tmp_path / "g.onnx", tmp_path / "t.onnx", ActivationScales(largest, columns))
    x = source.normal(size=(4, width)).astype(np.float32)
    wide, narrow = (
        onnxruntime.InferenceSession(str(tmp_path / name), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
        for name in ("g.onnx", "t.onnx")
    )
    assert 0 < np.linalg.norm(narrow - wide) < 0.15 * np.linalg.norm(wide)


def test_static_s2_tower_keeps_the_products_that_average_its_maps(tmp_path: Path) -> None:
    extra = {"dynamic_s2": False, "s2": True}
    s2 = trace(write_nvila(tmp_path / "s2", scales=(28, 56, 84), aspect="resize", extra=extra), side=84)
    write_int8_tower(s2.path, tmp_path / "t.onnx", s2.scales)
    before, after = (operators(onnx.load(path)) for path in (s2.path, tmp_path / "t.onnx"))
    assert before["MatMul"] == after["MatMul"] > 2 * (6 + 2), "attention's two and the averages stay"
    assert after["DequantizeLinear"] == 10 * 2
    pictures = random_tiles(2, 84)
    assert error(run(tmp_path / "t.onnx", pictures), s2.tower(pictures)) < 0.06


def test_scales_of_other_weights_are_refused(traced_llava: Traced, traced_nvila: Traced, tmp_path: Path) -> None:
    name = linear_name(1, "self_attn.k_proj")
    wrong = dict(traced_llava.scales.weight_maxima)
    wrong[name] = wrong[name] * 1.001
    cases = {
        "k_proj differs": dataclasses.replace(traced_llava.scales, weight_maxima=wrong),
        "hold 18 channels": traced_nvila.scales,
        "of 1 encoder layers, the graph has 2": _first_layer(traced_llava.scales),
    }
    for reason, scales in cases.items():
        with pytest.raises(ExportError, match=reason) as caught:
            write_int8_tower(traced_llava.path, tmp_path / "t.onnx", scales)
        assert "--vision" in str(caught.value.hint)


def _first_layer(scales: ActivationScales) -> ActivationScales:
    kept = {name: value for name, value in scales.maxima.items() if ".layers.0." in name}
    return dataclasses.replace(scales, maxima=kept, weight_maxima={})


@pytest.mark.parametrize("fault", ["lacks", "order", "shared norm", "norm is output"])
def test_graph_of_another_shape_is_refused(traced_llava: Traced, tmp_path: Path, fault: str) -> None:
    model = onnx.load(traced_llava.path)
    constants = Constants(model.graph, tmp_path)
    layer = encoder_layers(model.graph, constants)[0]
    normed = layer.norms["layer_norm1"].output[0]
    if fault == "lacks":
        layer.products["mlp.fc2"].input[1] = layer.products["mlp.fc2"].input[0]
    elif fault == "order":
        layer.products["self_attn.v_proj"].input[0] = layer.norms["layer_norm2"].output[0]
    elif fault == "shared norm":
        model.graph.node.append(helper.make_node("Tanh", [normed], ["elsewhere"]))
    else:
        model.graph.output.append(helper.make_tensor_value_info(normed, TensorProto.FLOAT, None))
    (tmp_path / "odd.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ExportError, match="cannot be quantised"):
        write_int8_tower(tmp_path / "odd.onnx", tmp_path / "t.onnx", traced_llava.scales)
