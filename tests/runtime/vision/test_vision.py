"""The vision engine on tiny graphs made here: shapes, scale matrices, plain blocks, errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.bundle import Bundle, parse_manifest
from runtime.errors import BundleError, ClosedError, EngineError, InputError
from runtime.tiling import TileLayout, layout_for, plain_layout, s2_matrices
from runtime.vision import onnx_vision as module
from runtime.vision import open_vision
from tests.runtime.bundle_example import manifest_json

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
helper, numpy_helper = onnx.helper, onnx.numpy_helper

TILE, SIDE, CHANNELS, HIDDEN = 4, 2, 3, 5
PATCHES = SIDE * SIDE
WEIGHT = np.random.default_rng(0).standard_normal((CHANNELS, HIDDEN)).astype(np.float32)


def value(name: str, shape: list[object]) -> Any:
    return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)


def save(path: Path, nodes: list[Any], inputs: list[Any], output: Any, constants: dict[str, np.ndarray]) -> None:
    tensors = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "graph", inputs, [output], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString())


def save_tower(path: Path, tile_px: int = TILE) -> None:
    """Twice the mean of each 2x2 patch: [T, 3, 4, 4] -> [T, 4, 3]. The 2 is fp16 followed by Cast, as in bundles."""
    save(
        path,
        [
            helper.make_node("AveragePool", ["tiles"], ["pooled"], kernel_shape=[2, 2], strides=[2, 2]),
            helper.make_node("Reshape", ["pooled", "shape"], ["flat"]),
            helper.make_node("Transpose", ["flat"], ["rows"], perm=[0, 2, 1]),
            helper.make_node("Cast", ["half"], ["two"], to=onnx.TensorProto.FLOAT),
            helper.make_node("Mul", ["rows", "two"], ["features"]),
        ],
        [value("tiles", ["t", 3, tile_px, tile_px])],
        value("features", ["t", (tile_px // 2) ** 2, CHANNELS]),
        {"shape": np.array([0, 3, -1]), "half": np.array([2], np.float16)},
    )


def save_projector(path: Path, hidden: int = HIDDEN) -> None:
    """features [T, P, C] -> rows [T * P, D]."""
    save(
        path,
        [
            helper.make_node("MatMul", ["features", "w"], ["y"]),
            helper.make_node("Reshape", ["y", "s"], ["image_embeds"]),
        ],
        [value("features", ["t", PATCHES, CHANNELS])],
        value("image_embeds", ["n", hidden]),
        {"w": WEIGHT[:, :1].repeat(hidden, axis=1) if hidden != HIDDEN else WEIGHT, "s": np.array([-1, hidden])},
    )


def save_scale_projector(path: Path) -> None:
    """Two scales: the sum of all features, plus sums of all matrices, as N = rows x columns of A_h_0 and A_w_0.

    Row (i, j) is sum(A_h_0[i]) * sum(A_w_0[j]) * sum(features) in each of D columns; the second pair adds its sums.
    """
    nodes = [
        helper.make_node("ReduceSum", ["area_h_0", "one"], ["h"], keepdims=1),
        helper.make_node("ReduceSum", ["area_w_0", "one"], ["w"], keepdims=1),
        helper.make_node("Transpose", ["w"], ["w_t"], perm=[1, 0]),
        helper.make_node("MatMul", ["h", "w_t"], ["map"]),
        helper.make_node("ReduceSum", ["features"], ["total"], keepdims=0),
        helper.make_node("ReduceSum", ["area_h_1"], ["h1"], keepdims=0),
        helper.make_node("ReduceSum", ["area_w_1"], ["w1"], keepdims=0),
        helper.make_node("Mul", ["h1", "w1"], ["area"]),
        helper.make_node("Add", ["total", "area"], ["factor"]),
        helper.make_node("Mul", ["map", "factor"], ["scaled"]),
        helper.make_node("Reshape", ["scaled", "column"], ["rows"]),
        helper.make_node("Expand", ["rows", "wide"], ["image_embeds"]),
    ]
    names = ["area_h_0", "area_w_0", "area_h_1", "area_w_1"]
    inputs = [value("features", ["t", PATCHES, CHANNELS]), *(value(n, [f"{n}_o", f"{n}_i"]) for n in names)]
    constants = {"one": np.array([1]), "column": np.array([-1, 1]), "wide": np.array([1, HIDDEN])}
    save(path, nodes, inputs, value("image_embeds", ["n", HIDDEN]), constants)


def manifest(mode: str = "resize", scales: int = 0, **tower: object) -> Any:
    data = manifest_json()
    names = [[f"area_h_{i}", f"area_w_{i}"] for i in range(scales)]
    data["vision"]["tower"] |= {"tile_px": TILE, "patches_per_tile": PATCHES, "channels": CHANNELS} | tower
    data["vision"]["projector"]["scale_inputs"] = names
    data["vision"]["preprocess"]["mode"] = mode
    data["vision"]["tiling"] |= {"tile_px": TILE, "patches_per_side": SIDE, "max_tiles": 6, "min_tiles": 1}
    data["vision"]["tiling"]["scales_px"] = [TILE * (i + 1) for i in range(scales)]
    data["vision"]["tiling"]["resize_output_to_scale_idx"] = -1 if scales else 0
    data["decoder"]["hidden"] = HIDDEN
    data["decoder"]["token_embeds"]["shape"] = [data["decoder"]["vocab"], HIDDEN]
    return parse_manifest(data)


@pytest.fixture
def plain(tmp_path: Path) -> Bundle:
    save_tower(tmp_path / "vision_tower.onnx")
    save_projector(tmp_path / "vision_projector.onnx")
    return Bundle(tmp_path, manifest())


@pytest.fixture
def scaled(tmp_path: Path) -> Bundle:
    save_tower(tmp_path / "vision_tower.onnx")
    save_scale_projector(tmp_path / "vision_projector.onnx")
    return Bundle(tmp_path, manifest("dynamic_s2", 2))


def tiles(count: int, tile_px: int = TILE) -> np.ndarray:
    return np.random.default_rng(count).standard_normal((count, 3, tile_px, tile_px)).astype(np.float32)


def pooled(pixels: np.ndarray) -> np.ndarray:
    """The tower's formula in float64."""
    t = pixels.astype(np.float64).reshape(-1, 3, SIDE, 2, SIDE, 2).mean(axis=(3, 5))
    return t.reshape(-1, 3, PATCHES).transpose(0, 2, 1) * 2


def layout(bundle: Bundle, height: int = 4, width: int = 4) -> TileLayout:
    return layout_for(height, width, bundle.manifest.vision.tiling_spec())


def test_features_and_projection_equal_the_formulas(plain: Bundle) -> None:
    vision = open_vision(plain, threads=1)
    pixels = tiles(1)
    features = vision.features(pixels)
    assert features.dtype == np.float32 and features.shape == (1, PATCHES, CHANNELS)
    np.testing.assert_allclose(features, pooled(pixels), atol=1e-6)
    embeds = vision.project(features, layout(plain))
    np.testing.assert_allclose(embeds, pooled(pixels)[0] @ WEIGHT.astype(np.float64), atol=1e-5)
    np.testing.assert_array_equal(vision.encode(pixels, layout(plain)), embeds)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_many_tiles_run_in_bounded_parts_and_keep_their_order(
    plain: Bundle, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    vision = open_vision(plain, threads=1)
    whole = vision.features(tiles(count))
    ran: list[int] = []
    run = module.Graph.run
    monkeypatch.setattr(module, "_PATCHES_PER_RUN", 2 * PATCHES + 1)
    monkeypatch.setattr(
        module.Graph, "run", lambda self, out, feeds: ran.append(len(feeds["tiles"])) or run(self, out, feeds)
    )
    np.testing.assert_array_equal(vision.features(tiles(count)), whole)
    assert ran == [2] * (count // 2) + [1] * (count % 2)


@pytest.mark.parametrize(("height", "width"), [(4, 4), (4, 12), (12, 4), (5, 7)])
def test_the_matrices_of_the_grid_reach_the_projector(scaled: Bundle, height: int, width: int) -> None:
    vision = open_vision(scaled, threads=1)
    spec = scaled.manifest.vision.tiling_spec()
    shape = layout_for(height, width, spec)
    pixels = tiles(shape.num_tiles)
    matrices = s2_matrices(shape, spec)
    (h0, w0), (h1, w1) = [(h.astype(np.float64), w.astype(np.float64)) for h, w in matrices]
    factor = pooled(pixels).sum() + h1.sum() * w1.sum()
    expected = (h0.sum(axis=1)[:, None] * w0.sum(axis=1)[None, :] * factor).reshape(-1, 1).repeat(HIDDEN, axis=1)
    for _ in range(2):  # the second time from the cache
        np.testing.assert_allclose(vision.encode(pixels, shape), expected, rtol=1e-4)
    assert len(vision._matrices) == 1


def test_a_plain_block_repeats_its_features_for_each_scale(scaled: Bundle) -> None:
    spec = scaled.manifest.vision.tiling_spec()
    shape = plain_layout(4, 4, spec)
    pixels = tiles(1)
    expected = 2 * pooled(pixels).sum() + SIDE * SIDE  # two copies; both second matrices are the identity of SIDE
    vision = open_vision(scaled, threads=1)
    embeds = vision.encode(pixels, shape)
    assert embeds.shape == (PATCHES, HIDDEN)
    np.testing.assert_allclose(embeds, expected, rtol=1e-4)


def test_plain_and_tiled_layouts_of_one_grid_do_not_share_matrices(scaled: Bundle) -> None:
    spec = scaled.manifest.vision.tiling_spec()
    vision = open_vision(scaled, threads=1)
    tiled = layout_for(4, 12, spec)
    vision.encode(tiles(tiled.num_tiles), tiled)
    vision.encode(tiles(1), plain_layout(4, 12, spec))
    assert len(vision._matrices) == 2


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((1, 3, 5, 4), np.float32),
        np.zeros((1, 4, 4, 3), np.float32),
        np.zeros((3, 4, 4), np.float32),
        np.zeros((1, 3, 4, 4)),
        np.zeros((0, 3, 4, 4), np.float32),
    ],
)
def test_other_tiles_are_refused_with_what_is_expected(plain: Bundle, array: np.ndarray) -> None:
    with pytest.raises(EngineError, match=r"this bundle takes float32 \[T, 3, 4, 4\]"):
        open_vision(plain, threads=1).features(array)


def test_features_of_another_layout_are_refused(scaled: Bundle) -> None:
    vision = open_vision(scaled, threads=1)
    features = vision.features(tiles(2))
    with pytest.raises(EngineError, match=r"features are float32 \[2, 4, 3\]; this bundle takes float32 \[\d, 4, 3\]"):
        vision.project(features, layout(scaled))


@pytest.mark.parametrize(
    ("tower", "words"),
    [
        ({"input": "pixels"}, "has no input 'pixels', only tiles"),
        ({"output": "y"}, "has no output 'y', only features"),
        ({"channels": 7}, r"output 'features' is \['t', 4, 3\], the manifest says \[any, 4, 7\]"),
    ],
)
def test_a_graph_that_contradicts_the_manifest_is_refused(plain: Bundle, tower: dict[str, Any], words: str) -> None:
    with pytest.raises(BundleError, match=words):
        open_vision(Bundle(plain.path, manifest(**tower)), threads=1)


def test_a_projector_of_another_width_is_refused(plain: Bundle) -> None:
    save_projector(plain.path / "vision_projector.onnx", hidden=6)
    with pytest.raises(BundleError, match=r"the manifest says \[any, 5\]"):
        open_vision(plain, threads=1)


def test_scales_without_matrices_are_refused(scaled: Bundle) -> None:
    data = manifest("dynamic_s2", 2)
    object.__setattr__(data.vision.projector, "scale_inputs", ())
    with pytest.raises(BundleError, match="scale_inputs has 0 pairs for 2 entries"):
        open_vision(Bundle(scaled.path, data), threads=1)


def test_a_file_that_is_no_graph_is_a_bundle_error(plain: Bundle) -> None:
    (plain.path / "vision_tower.onnx").write_bytes(b"not a graph")
    with pytest.raises(BundleError, match=r"vision_tower\.onnx: (not an ONNX model|ONNX Runtime .* refuses it)"):
        open_vision(plain, threads=1)


def test_a_failing_run_is_an_engine_error_and_the_engine_stays_usable(
    scaled: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    vision = open_vision(scaled, threads=1)
    shape = layout(scaled)
    good = vision.encode(tiles(shape.num_tiles), shape)
    feeds = vision._scale_feeds(shape)
    monkeypatch.setattr(vision, "_scale_feeds", lambda _: feeds | {"area_h_0": np.zeros((2, 2, 2), np.float32)})
    with pytest.raises(EngineError, match=r"vision_projector\.onnx failed on features \["):
        vision.encode(tiles(shape.num_tiles), shape)
    monkeypatch.undo()
    np.testing.assert_array_equal(vision.encode(tiles(shape.num_tiles), shape), good)


def test_a_projector_that_gives_too_few_rows_is_an_engine_error(
    scaled: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    vision = open_vision(scaled, threads=1)
    shape = layout(scaled)
    feeds = vision._scale_feeds(shape)
    monkeypatch.setattr(vision, "_scale_feeds", lambda _: feeds | {"area_h_0": feeds["area_h_0"][1:]})
    with pytest.raises(EngineError, match=r"gave \[\d+, 5\], the manifest and the layout say"):
        vision.encode(tiles(shape.num_tiles), shape)


def test_after_close_every_call_says_so_and_closing_twice_is_harmless(plain: Bundle) -> None:
    vision = open_vision(plain, threads=1)
    features = vision.features(tiles(1))
    vision.close()
    vision.close()
    for call in (lambda: vision.features(tiles(1)), lambda: vision.project(features, layout(plain))):
        with pytest.raises(ClosedError, match="the vision engine is closed"):
            call()


def test_results_do_not_depend_on_the_number_of_threads(plain: Bundle) -> None:
    one, two = (open_vision(plain, threads=n).features(tiles(5)) for n in (1, 2))
    np.testing.assert_allclose(one, two, atol=1e-6)


@pytest.mark.parametrize(("arguments", "words"), [({"threads": 0}, "0 threads"), ({"provider": "tpu"}, "'tpu'")])
def test_wrong_arguments_are_refused(plain: Bundle, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        open_vision(plain, **arguments)


def test_cuda_without_its_provider_names_the_extra(plain: Bundle) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    with pytest.raises(EngineError, match=r"jetson-vlm\[ort-gpu\]"):
        open_vision(plain, provider="cuda")
