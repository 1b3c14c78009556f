"""Tiles with pixels: against Pillow step by step and against transformers' processors."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from models import tiling
from runtime.errors import ExportError
from runtime.tiling import TilingSpec, layout_for
from tests.models.tiny import picture


def same(first: Image.Image, second: Image.Image) -> bool:
    return np.array_equal(np.asarray(first), np.asarray(second))


@pytest.mark.parametrize(("width", "height", "cols", "rows"), [(640, 480, 4, 3), (1080, 1920, 2, 4), (60, 20, 3, 1)])
def test_behaviour_12_dynamic_tiles_are_pillow_crops_row_by_row_and_the_thumbnail_is_last(
    width, height, cols, rows
) -> None:
    image = picture(width, height)
    tiles = tiling.dynamic_preprocess(image, image_size=32)
    assert len(tiles) == cols * rows + 1
    resized = image.resize((32 * cols, 32 * rows), Image.Resampling.BICUBIC)
    for index, tile in enumerate(tiles[:-1]):
        left, top = 32 * (index % cols), 32 * (index // cols)
        assert same(tile, resized.crop((left, top, left + 32, top + 32)))
    assert same(tiles[-1], image.resize((32, 32), Image.Resampling.BICUBIC))


def test_behaviour_12_one_tile_has_no_thumbnail_and_it_can_be_left_out() -> None:
    assert len(tiling.dynamic_preprocess(picture(20, 20), image_size=32)) == 1
    assert len(tiling.dynamic_preprocess(picture(640, 480), image_size=32, use_thumbnail=False)) == 12
    assert len(tiling.dynamic_preprocess(picture(640, 480), 1, 4, 32)) <= 5


@pytest.mark.parametrize(("width", "height", "block"), [(640, 480, (3, 4)), (1080, 1920, (5, 2)), (200, 1000, (9, 1))])
def test_behaviour_12_dynamic_s2_tiles_of_every_scale_and_the_swapped_block_size(width, height, block) -> None:
    image = picture(width, height)
    tiles, found = tiling.dynamic_s2_preprocess(image, [448, 896, 1344], 12, 32)
    assert found == block
    expected = []
    for rows, cols in [(1, 1), (2, 2), block]:
        resized = image.resize((32 * cols, 32 * rows), Image.Resampling.BICUBIC)
        for row in range(rows):
            for col in range(cols):
                expected.append(resized.crop((32 * col, 32 * row, 32 * col + 32, 32 * row + 32)))
    assert len(tiles) == len(expected) == 5 + block[0] * block[1]
    assert all(same(tile, other) for tile, other in zip(tiles, expected, strict=True))


# width, height: (cols, rows) of dynamic, (rows, cols) of dynamic S² (reference, section 2.10)
TABLE = {
    (448, 448): ((1, 1), (3, 3)), (50, 50): ((1, 1), (3, 3)), (640, 480): ((4, 3), (3, 4)),
    (4000, 3000): ((4, 3), (3, 4)), (1920, 1080): ((4, 2), (3, 4)), (1280, 720): ((4, 2), (3, 4)),
    (3840, 2160): ((4, 2), (3, 4)), (1080, 1920): ((2, 4), (5, 2)), (896, 448): ((2, 1), (2, 5)),
    (300, 100): ((3, 1), (2, 6)), (1000, 200): ((5, 1), (2, 6)), (200, 1000): ((1, 5), (9, 1)),
    (720, 720): ((2, 2), (3, 3)), (2000, 2000): ((3, 3), (3, 3)),
}  # fmt: skip
MORE = [(1024, 768), (333, 777), (1, 2000), (5000, 40), (449, 447)]


def nearest_grid(width: int, height: int, least: int, most: int) -> tuple[int, int]:
    """(cols, rows) by the published search: the nearest ratio, of equal ones the larger where the picture fills it."""
    grids = [(i, j) for i in range(1, most + 1) for j in range(1, most + 1) if least <= i * j <= most]
    best, distance = (1, 1), float("inf")
    for i, j in sorted(grids, key=lambda grid: grid[0] * grid[1]):
        off = abs(width / height - i / j)
        if off < distance or (off == distance and width * height > 0.5 * 448 * 448 * i * j):
            best, distance = (i, j), off
    return best


@pytest.mark.parametrize("size", [*TABLE, *MORE], ids=str)
def test_behaviour_12_grids_of_nineteen_sizes_are_the_published_ones(size: tuple[int, int]) -> None:
    width, height = size
    dynamic = layout_for(height, width, TilingSpec("dynamic", 448, 4, max_tiles=12, use_thumbnail=True))
    scaled = layout_for(height, width, TilingSpec("dynamic_s2", 448, 4, max_tiles=12, scales_px=(448, 896, 1344)))
    cols, rows = nearest_grid(width, height, 1, 12)
    s2_cols, s2_rows = nearest_grid(width, height, 9, 12)
    if size in TABLE:
        assert ((cols, rows), (s2_rows, s2_cols)) == TABLE[size]
    assert dynamic.grid == (rows, cols)
    assert dynamic.num_tiles == rows * cols + (rows * cols > 1)
    assert scaled.grid == (s2_rows, s2_cols)
    assert scaled.num_tiles == 1 + 4 + s2_rows * s2_cols


def test_behaviour_12_fewer_tiles_than_the_last_scale_needs_give_one() -> None:
    assert tiling.dynamic_s2_preprocess(picture(64, 48), [448, 896, 1344], 8, 32)[1] == (1, 1)


SIGLIP = SiglipImageProcessorPil(size={"height": 28, "width": 28}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
CLIP = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, do_center_crop=True)


@pytest.mark.parametrize(("mode", "processor"), [("resize", SIGLIP), ("crop", CLIP)])
@pytest.mark.parametrize("size", [(60, 40), (28, 28), (31, 77)])
def test_plain_modes_equal_the_processor_of_transformers(mode, processor, size) -> None:
    image, spec = picture(*size), TilingSpec(mode, 28, 4)
    tiles, layouts = tiling.pictures_tiles([image], spec, processor)
    expected = processor(image, return_tensors="pt")["pixel_values"]
    assert torch.equal(tiles[0], expected)
    box = layouts[0].tiles[0]
    resized = image.resize((box.resize_w, box.resize_h), Image.Resampling.BICUBIC)
    cut = resized.crop((box.left, box.top, box.left + 28, box.top + 28))  # the layout says where the processor cuts
    values = torch.from_numpy(np.array(cut)).permute(2, 0, 1) / 255
    mean, std = (torch.tensor(v)[:, None, None] for v in (processor.image_mean, processor.image_std))
    torch.testing.assert_close(tiles[0][0], (values - mean) / std, atol=0.02, rtol=0)


def test_padding_centres_the_picture_on_the_mean_colour() -> None:
    image = picture(40, 20)
    colour = tiling.pad_colour(CLIP)
    assert colour == (122, 116, 104)
    square = tiling.pad_to_square(image, colour)
    assert square.size == (40, 40)
    assert same(square.crop((0, 10, 40, 30)), image)
    assert square.getpixel((0, 0)) == colour
    tall = tiling.pad_to_square(picture(20, 41), colour)
    assert same(tall.crop((10, 0, 30, 41)), picture(20, 41))
    spec = TilingSpec("pad", 28, 4)
    tiles, layouts = tiling.pictures_tiles([image], spec, CLIP)
    assert torch.equal(tiles[0], CLIP(square, return_tensors="pt")["pixel_values"])
    assert (layouts[0].pad_px, layouts[0].pad_top, layouts[0].pad_left) == (40, 10, 0)


def test_tiles_are_normalised_one_by_one() -> None:
    image, spec = picture(90, 60), TilingSpec("dynamic", 28, 4)
    tiles, layouts = tiling.pictures_tiles([image], spec, SIGLIP)
    cut = tiling.cut_tiles(image, layouts[0], 28)
    assert layouts[0] == layout_for(60, 90, spec)
    expected = [(torch.from_numpy(np.array(tile)).permute(2, 0, 1) / 255 - 0.5) / 0.5 for tile in cut]
    torch.testing.assert_close(tiles[0], torch.stack(expected), atol=1e-6, rtol=0)


def test_pictures_are_made_upright_and_opaque() -> None:
    image = picture(30, 20)
    turned = image.copy()
    turned.getexif()[0x0112] = 6
    assert tiling.to_rgb(turned).size == (20, 30)
    rgba = Image.new("RGBA", (2, 2), (200, 100, 50, 0))
    assert tiling.to_rgb(rgba).getpixel((0, 0)) == (0, 0, 0)
    assert tiling.to_rgb(Image.new("L", (2, 2), 7)).getpixel((1, 1)) == (7, 7, 7)


def test_processor_that_makes_no_square_is_refused() -> None:
    oblong = SiglipImageProcessorPil(size={"height": 28, "width": 30})
    with pytest.raises(ExportError, match="28"):
        tiling.processor_tile_px(oblong)
    assert tiling.processor_tile_px(CLIP) == 28


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"image_aspect_ratio": "anyres"}, "image_aspect_ratio is 'anyres'"),
        ({"s2": True}, "s2 with LLaVA's own layout"),
        ({"dynamic_s2": True}, "dynamic_s2 with LLaVA's own layout"),
    ],
)
def test_views_that_llava_does_not_serve_are_refused_by_name(fields, said) -> None:
    tower = SimpleNamespace(image_processor=CLIP)
    model = SimpleNamespace(get_vision_tower=lambda: tower, config=SimpleNamespace(**fields))
    with pytest.raises(ExportError, match=said):
        tiling.llava_tiling_spec(model)


def test_processor_whose_size_is_the_square_itself_cuts_nothing() -> None:
    """S² towers set a CLIP processor's size to height and width: the picture is squeezed, its centre is not cut out."""
    square = {"height": 28, "width": 28}
    processor = CLIPImageProcessorPil(size=square, crop_size=square, do_center_crop=True)
    assert (tiling.processor_mode(processor), tiling.processor_mode(CLIP)) == ("resize", "crop")
    image = picture(90, 40)
    squeezed = processor(image, return_tensors="pt")["pixel_values"]
    tiles, _ = tiling.pictures_tiles([image], TilingSpec("resize", 28, 4), processor)
    assert torch.equal(tiles[0], squeezed)
