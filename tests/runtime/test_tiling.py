"""Tile geometry against the published choices, torch's own interpolation and properties over many shapes."""

from __future__ import annotations

import hashlib
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime import tiling
from runtime.errors import ConfigError, ImageError
from runtime.tiling import TilingSpec

DYNAMIC = TilingSpec("dynamic", tile_px=448, patches_per_side=32, downsample=3)
S2 = TilingSpec(
    "dynamic_s2", 448, 32, scales_px=(448, 896, 1344), resize_output_to_scale_idx=-1, downsample=2, use_thumbnail=False
)

# width, height, dynamic (cols, rows), tiles with thumbnail, dynamic S² (rows, cols), tiles: published choices.
PUBLISHED = [
    (448, 448, (1, 1), 1, (3, 3), 14),
    (50, 50, (1, 1), 1, (3, 3), 14),
    (640, 480, (4, 3), 13, (3, 4), 17),
    (4000, 3000, (4, 3), 13, (3, 4), 17),
    (1920, 1080, (4, 2), 9, (3, 4), 17),
    (1280, 720, (4, 2), 9, (3, 4), 17),
    (3840, 2160, (4, 2), 9, (3, 4), 17),
    (1080, 1920, (2, 4), 9, (5, 2), 15),
    (896, 448, (2, 1), 3, (2, 5), 15),
    (300, 100, (3, 1), 4, (2, 6), 17),
    (1000, 200, (5, 1), 6, (2, 6), 17),
    (200, 1000, (1, 5), 6, (9, 1), 14),
    (720, 720, (2, 2), 5, (3, 3), 14),
    (2000, 2000, (3, 3), 10, (3, 3), 14),
]
ODD_SIZES = [(1, 1), (1, 4000), (4000, 1), (16384, 16384), (449, 447)]


def reference_choice(width: int, height: int, tile: int, lowest: int, most: int) -> tuple[int, int]:
    """The published algorithm written down once more, (cols, rows)."""
    found = set()
    for n in range(lowest, most + 1):
        for i in range(1, n + 1):
            for j in range(1, n + 1):
                if lowest <= i * j <= most:
                    found.add((i, j))
    best, least = (1, 1), float("inf")
    for i, j in sorted(found, key=lambda r: r[0] * r[1]):
        difference = abs(width / height - i / j)
        if difference < least:
            least, best = difference, (i, j)
        elif difference == least and width * height > 0.5 * tile * tile * i * j:
            best = (i, j)
    return best


@pytest.mark.parametrize(("width", "height", "dynamic", "count", "block", "s2_count"), PUBLISHED)
def test_behaviour_12_tile_choice_of_published_sizes(width, height, dynamic, count, block, s2_count) -> None:
    cols, rows = dynamic
    plain, multi = tiling.layout_for(height, width, DYNAMIC), tiling.layout_for(height, width, S2)
    assert (plain.grid, plain.num_tiles) == ((rows, cols), count)
    assert plain.num_image_tokens == 121 * count
    assert (multi.grid, multi.num_tiles) == (block, s2_count)
    assert multi.num_image_tokens == 256 * block[0] * block[1]


@pytest.mark.parametrize(("width", "height"), ODD_SIZES)
def test_behaviour_12_tile_choice_of_odd_sizes_follows_the_published_algorithm(width, height) -> None:
    cols, rows = reference_choice(width, height, 448, 1, 12)
    assert tiling.layout_for(height, width, DYNAMIC).grid == (rows, cols)
    cols, rows = reference_choice(width, height, 448, 9, 12)
    assert tiling.layout_for(height, width, S2).grid == (rows, cols)


def test_equal_area_order_is_that_of_the_published_set_on_every_interpreter() -> None:
    digest = hashlib.sha256()
    for lowest in range(1, 50):
        for most in range(lowest, 50):
            digest.update(repr([(c, r) for r, c in tiling.candidate_grids(lowest, most)]).encode())
    # From CPython 3.10 to 3.13 running the published expression; they agree.
    assert digest.hexdigest()[:16] == "dee88b228df2946a"


@pytest.mark.parametrize(
    ("height", "width", "expected"), [(448, 896, (1, 2)), (633, 1266, (1, 2)), (634, 1268, (2, 4))]
)
def test_exact_tie_goes_to_the_later_grid_above_half_of_its_pixels(height, width, expected) -> None:
    assert tiling.find_closest_aspect_ratio(height, width, 448, [(1, 2), (2, 4)]) == expected


def test_no_candidate_gives_one_by_one() -> None:
    spec = TilingSpec("dynamic_s2", 448, 32, max_tiles=8, scales_px=(448, 896, 1344), resize_output_to_scale_idx=-1)
    layout = tiling.layout_for(300, 400, spec)
    assert (layout.grid, layout.num_tiles, layout.multi_scale) == ((1, 1), 6, True)


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 3000),
    width=st.integers(1, 3000),
    most=st.integers(1, 14),
    tile=st.sampled_from([8, 14, 448]),
)
def test_tiles_cover_every_pixel_of_the_resized_picture_once(height, width, most, tile) -> None:
    spec = TilingSpec("dynamic", tile, 2, max_tiles=most)
    layout = tiling.layout_for(height, width, spec)
    rows, cols = layout.grid
    assert rows * cols <= most
    thumbnail = 1 if rows * cols > 1 else 0
    assert layout.num_tiles == rows * cols + thumbnail == len(layout.tiles)
    seen = np.zeros((rows * tile, cols * tile), np.int32)
    for box in layout.tiles[: rows * cols]:
        assert (box.resize_h, box.resize_w) == seen.shape
        seen[box.top : box.top + tile, box.left : box.left + tile] += 1
    assert (seen == 1).all()
    order = [(box.top, box.left) for box in layout.tiles[: rows * cols]]
    assert order == sorted(order)
    if thumbnail:
        assert layout.tiles[-1] == tiling.TileBox(tile, tile, 0, 0)


@settings(max_examples=60, deadline=None)
@given(height=st.integers(1, 2000), width=st.integers(1, 2000), scales=st.sampled_from([(8,), (8, 16), (8, 16, 24)]))
def test_s2_tiles_of_each_scale_cover_their_picture_once(height, width, scales) -> None:
    spec = TilingSpec("dynamic_s2", 8, 4, max_tiles=12, scales_px=scales, resize_output_to_scale_idx=-1)
    layout = tiling.layout_for(height, width, spec)
    assert layout.num_tiles == tiling.s2_tile_count(layout.grid, spec) == len(layout.tiles)
    shapes: dict[tuple[int, int], int] = {}
    start = 0
    for rows, cols in [(s // 8, s // 8) for s in scales[:-1]] + [layout.grid]:
        seen = np.zeros((rows * 8, cols * 8), np.int32)
        for box in layout.tiles[start : start + rows * cols]:
            assert (box.resize_h, box.resize_w) == seen.shape
            seen[box.top : box.top + 8, box.left : box.left + 8] += 1
        assert (seen == 1).all()
        start += rows * cols
        shapes[rows, cols] = start
    assert start == layout.num_tiles


@settings(max_examples=50, deadline=None)
@given(height=st.integers(1, 3000), width=st.integers(1, 3000))
def test_behaviour_12_block_size_is_rows_then_columns(height, width) -> None:
    rows, cols = tiling.layout_for(height, width, S2).grid
    assert (cols, rows) == reference_choice(width, height, 448, 9, 12)


def test_output_scale_sets_the_number_of_image_tokens() -> None:
    for index, out, tokens in ((0, (1, 1), 256), (1, (2, 2), 1024), (2, (3, 4), 3072), (-1, (3, 4), 3072)):
        spec = TilingSpec(
            "dynamic_s2", 448, 32, scales_px=(448, 896, 1344), resize_output_to_scale_idx=index, downsample=2
        )
        layout = tiling.layout_for(480, 640, spec)
        assert (layout.grid, layout.out_grid, layout.num_image_tokens) == ((3, 4), out, tokens)


@settings(max_examples=100, deadline=None)
@given(n_out=st.integers(1, 40), n_in=st.integers(1, 40))
def test_area_matrix_equals_torch_area_interpolation(n_out, n_in) -> None:
    torch = pytest.importorskip("torch")
    draw = random.Random(n_in)  # one generator: equal values would let any averaging matrix pass
    values = torch.tensor([draw.random() for _ in range(n_in)]).reshape(1, 1, n_in, 1)
    ours = tiling.area_matrix(n_out, n_in) @ values.numpy().reshape(n_in)
    theirs = torch.nn.functional.interpolate(values, size=(n_out, 1), mode="area").numpy().reshape(n_out)
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("index", [0, 1, -1])
def test_s2_matrices_bring_every_scale_to_the_output_size(index) -> None:
    spec = TilingSpec("dynamic_s2", 448, 4, scales_px=(448, 896, 1344), resize_output_to_scale_idx=index)
    layout = tiling.layout_for(448, 896, spec)
    matrices = tiling.s2_matrices(layout, spec)
    assert [(h.shape[1], w.shape[1]) for h, w in matrices] == [(4, 4), (8, 8), (8, 20)]
    for high, wide in matrices:
        assert (high.shape[0], wide.shape[0]) == (4 * layout.out_grid[0], 4 * layout.out_grid[1])
        np.testing.assert_allclose(high.sum(axis=1), 1.0, atol=1e-6)
        np.testing.assert_allclose(wide.sum(axis=1), 1.0, atol=1e-6)


def test_plain_block_has_identity_matrices_for_every_scale() -> None:
    layout = tiling.plain_layout(480, 640, S2)
    assert (layout.grid, layout.num_tiles, layout.num_image_tokens) == ((1, 1), 1, 256)
    matrices = tiling.s2_matrices(layout, S2)
    assert len(matrices) == 3
    for pair in matrices:
        for matrix in pair:
            np.testing.assert_array_equal(matrix, np.eye(32, dtype=np.float32))


def test_two_pictures_are_not_tiled_unless_tile_all() -> None:
    sizes = [(480, 640), (640, 480)]
    assert [layout.num_tiles for layout in tiling.layouts_for(sizes, S2)] == [1, 1]
    assert [layout.num_tiles for layout in tiling.layouts_for(sizes[:1], S2)] == [17]
    every = TilingSpec("dynamic", 448, 32, tile_all=True)
    assert [layout.grid for layout in tiling.layouts_for(sizes, every)] == [(3, 4), (4, 3)]


def test_crop_resizes_the_short_edge_and_cuts_the_centre() -> None:
    spec = TilingSpec("crop", 336, 24, class_tokens=1)
    layout = tiling.layout_for(480, 641, spec)
    assert layout.tiles == (tiling.TileBox(336, 448, 0, 56),)
    assert layout.num_image_tokens == 577
    assert tiling.layout_for(641, 480, TilingSpec("crop", 336, 24, shortest_edge_px=340)).tiles == (
        tiling.TileBox(454, 340, 59, 2),
    )


def test_pad_centres_the_picture_on_a_square() -> None:
    layout = tiling.layout_for(300, 401, TilingSpec("pad", 336, 24))
    assert (layout.pad_px, layout.pad_top, layout.pad_left) == (401, 50, 0)
    assert tiling.layout_for(300, 300, TilingSpec("pad", 336, 24)).pad_px == 0


def test_odd_patch_grids_round_up_in_the_projector() -> None:
    assert TilingSpec("resize", 448, 32, downsample=3).tokens_per_block == 121
    assert TilingSpec("resize", 448, 27, downsample=2).tokens_per_block == 196


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"mode": "other"}, "mode"),
        ({"tile_px": 0}, "tile_px"),
        ({"min_tiles": 3, "max_tiles": 2}, "max_tiles"),
        ({"mode": "dynamic_s2"}, "scales_px"),
        ({"mode": "dynamic_s2", "scales_px": (896, 448)}, "scales_px"),
        ({"mode": "dynamic_s2", "scales_px": (448, 900)}, "scales_px"),
        ({"mode": "dynamic_s2", "scales_px": (448, 896), "resize_output_to_scale_idx": 2}, "resize_output"),
        ({"mode": "crop", "shortest_edge_px": 400}, "shortest_edge_px"),
    ],
)
def test_impossible_specs_are_refused_with_the_field_name(changes, named) -> None:
    fields = {"mode": "dynamic", "tile_px": 448, "patches_per_side": 32} | changes
    with pytest.raises(ConfigError, match=named):
        TilingSpec(**fields)


def test_empty_picture_is_refused() -> None:
    with pytest.raises(ImageError, match="0x5"):
        tiling.layout_for(5, 0, DYNAMIC)
