"""Chessboards, the dynamic-S² merge and the traced projector, against loops over pixels and torch's interpolation."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from models import mosaic
from models.nvila import LlavaMetaModel
from models.nvila_model import LlavaMetaModel as Mixin
from runtime.errors import InputError
from runtime.tiling import TilingSpec, layout_for, plain_layout, s2_matrices

SCALES = (448, 896, 1344)


def merger(index: int, side: int = 2) -> LlavaMetaModel:
    """A model with nothing but what the merge reads."""
    model = Mixin.__new__(type("Merger", (Mixin,), {}))
    model.config = SimpleNamespace(s2_resize_output_to_scale_idx=index, dynamic_s2=True)
    model.vision_tower = SimpleNamespace(scales=list(SCALES))  # type: ignore[assignment]
    return model


def reference_merge(features: torch.Tensor, block: tuple[int, int], index: int) -> torch.Tensor:
    """The merge of one image [N tiles, g*g, C] written with plain loops, then torch's area interpolation."""
    side = int(features.shape[1] ** 0.5)
    maps, taken = [], 0
    for rows, cols in [(1, 1), (2, 2), block]:
        canvas = torch.zeros(features.shape[2], rows * side, cols * side)
        for row in range(rows):
            for col in range(cols):
                tile = features[taken].reshape(side, side, -1).permute(2, 0, 1)
                canvas[:, row * side : (row + 1) * side, col * side : (col + 1) * side] = tile
                taken += 1
        maps.append(canvas[None])
    size = maps[index].shape[-2:]
    return torch.cat([functional.interpolate(m, size=size, mode="area") for m in maps], dim=1)


def test_behaviour_01_split_order_of_a_4x6_map_into_2x3() -> None:
    x = torch.arange(2 * 1 * 4 * 6).reshape(2, 1, 4, 6)
    pieces = LlavaMetaModel.split_chessboard(x, 2, 3)
    assert pieces.shape == (12, 1, 2, 2)
    for i in range(2):
        for j in range(3):
            for b in range(2):
                expected = x[b, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
                assert torch.equal(pieces[(i * 3 + j) * 2 + b], expected)


@settings(max_examples=40)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3))
def test_behaviour_01_merge_undoes_split(batch: int, channels: int, rows: int, cols: int, side: int) -> None:
    x = torch.rand(batch, channels, rows * side, cols * (side + 1))
    pieces = LlavaMetaModel.split_chessboard(x, rows, cols)
    assert torch.equal(LlavaMetaModel.merge_chessboard(pieces, rows, cols), x)


@pytest.mark.parametrize(("rows", "cols"), [(3, 1), (1, 4)])
def test_behaviour_01_uneven_split_is_an_assertion(rows: int, cols: int) -> None:
    with pytest.raises(AssertionError, match="4x6"):
        LlavaMetaModel.split_chessboard(torch.zeros(1, 1, 4, 6), rows, cols)
    with pytest.raises(AssertionError, match="5 pieces"):
        LlavaMetaModel.merge_chessboard(torch.zeros(5, 1, 2, 2), 2, 2)


def test_behaviour_02_merge_of_token_rows_reads_them_as_a_square() -> None:
    tokens = torch.rand(6, 9, 5)
    as_maps = tokens.permute(0, 2, 1).reshape(6, 5, 3, 3)
    merged = LlavaMetaModel.merge_chessboard(tokens, 2, 3)
    assert torch.equal(merged, LlavaMetaModel.merge_chessboard(as_maps, 2, 3))
    assert merged.shape == (1, 5, 6, 9)


def test_behaviour_02_token_rows_that_are_no_square_are_refused() -> None:
    with pytest.raises(ValueError, match="8 tokens"):
        LlavaMetaModel.merge_chessboard(torch.zeros(4, 8, 3), 2, 2)


@pytest.mark.parametrize("block", [(3, 4), (2, 5), (9, 1), (3, 3)])
@pytest.mark.parametrize(("index", "new"), [(-1, None), (2, None), (0, (1, 1)), (1, (2, 2))])
def test_behaviour_03_merge_equals_loops_and_area_interpolation(block, index, new) -> None:
    features = torch.randn(5 + block[0] * block[1], 16, 3, generator=torch.Generator().manual_seed(1))
    maps, blocks = merger(index).merge_features_for_dynamic_s2(features, [block])
    assert blocks == [new or block]
    torch.testing.assert_close(maps[0], reference_merge(features, block, index), atol=1e-6, rtol=1e-6)


def test_behaviour_03_several_images_are_taken_one_after_the_other() -> None:
    features = torch.randn(5 + 9 + 1 + 5 + 10, 4, 2)
    maps, blocks = merger(-1).merge_features_for_dynamic_s2(features, [(3, 3), None, (2, 5)])
    assert blocks == [(3, 3), (1, 1), (2, 5)]
    torch.testing.assert_close(maps[0], reference_merge(features[:14], (3, 3), -1))
    torch.testing.assert_close(maps[2], reference_merge(features[15:], (2, 5), -1))


def test_behaviour_04_a_plain_tile_repeats_its_channels_for_every_scale() -> None:
    features = torch.randn(2, 9, 4)
    maps, blocks = merger(-1).merge_features_for_dynamic_s2(features, [None, None])
    assert blocks == [(1, 1), (1, 1)]
    for tile, found in zip(features, maps, strict=True):
        one = tile.reshape(3, 3, 4).permute(2, 0, 1)
        assert torch.equal(found[0], torch.cat([one, one, one]))


@pytest.mark.parametrize(("tiles", "block"), [(13, (3, 3)), (15, (3, 3)), (1, (2, 2))])
def test_behaviour_05_wrong_number_of_tiles_is_refused_with_the_sum(tiles: int, block: tuple[int, int]) -> None:
    last = block[0] * block[1]
    with pytest.raises(InputError, match=rf"needs {5 + last} tiles \(1 \+ 4 \+ {last}\), got {tiles}"):
        merger(-1).merge_features_for_dynamic_s2(torch.zeros(tiles, 4, 2), [block])


@settings(max_examples=25)
@given(height=st.integers(20, 900), width=st.integers(20, 900), index=st.sampled_from([0, 1, -1]))
def test_matrices_and_graph_module_equal_the_eager_merge_on_every_grid(height: int, width: int, index: int) -> None:
    spec = TilingSpec("dynamic_s2", 448, 4, scales_px=SCALES, resize_output_to_scale_idx=index)
    layout = layout_for(height, width, spec)
    features = torch.randn(layout.num_tiles, 16, 3, generator=torch.Generator().manual_seed(2))
    matrices = [torch.from_numpy(matrix) for pair in s2_matrices(layout, spec) for matrix in pair]
    ours = mosaic.merge_scales(features, matrices, 4)
    expected = reference_merge(features, layout.grid, index)[0].permute(1, 2, 0)
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-6)
    tokens = mosaic.MosaicProjector(torch.nn.Identity(), 4)(features, *matrices)
    assert torch.equal(tokens, ours.reshape(-1, 9))


def test_graph_module_takes_a_plain_tile_once_per_scale() -> None:
    spec = TilingSpec("dynamic_s2", 448, 4, scales_px=SCALES, resize_output_to_scale_idx=-1)
    matrices = [torch.from_numpy(m) for pair in s2_matrices(plain_layout(9, 9, spec), spec) for m in pair]
    tile = torch.randn(1, 16, 3)
    tokens = mosaic.MosaicProjector(torch.nn.Identity(), 4)(tile.repeat(3, 1, 1), *matrices)
    assert torch.equal(tokens, tile[0].repeat(1, 3))


def test_graph_module_refuses_tiles_that_the_matrices_do_not_ask_for() -> None:
    eye = torch.eye(4)
    with pytest.raises(InputError, match="ask for 1 tiles, got 2"):
        mosaic.MosaicProjector(torch.nn.Identity(), 4)(torch.zeros(2, 16, 3), eye, eye)


@pytest.mark.parametrize(("grid", "side"), [(4, 2), (5, 2), (4, 3), (6, 3), (7, 3)])
def test_space_to_depth_equals_a_loop_with_zero_padding(grid: int, side: int) -> None:
    x = torch.rand(2, grid * grid, 3)
    padded = -(-grid // side) * side
    canvas = np.zeros((2, padded, padded, 3), np.float32)
    canvas[:, :grid, :grid] = x.reshape(2, grid, grid, 3).numpy()
    out = padded // side
    expected = np.zeros((2, out * out, side * side * 3), np.float32)
    for r in range(out):
        for c in range(out):
            square = canvas[:, r * side : (r + 1) * side, c * side : (c + 1) * side]
            expected[:, r * out + c] = square.reshape(2, -1)
    np.testing.assert_array_equal(mosaic.fold_squares(x, side).numpy(), expected)


def test_space_to_depth_refuses_what_is_no_square() -> None:
    with pytest.raises(ValueError, match="8 patches"):
        mosaic.fold_squares(torch.zeros(1, 8, 2), 2)
