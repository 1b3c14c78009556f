"""Tiles equal those of transformers' image processors and of Pillow, bit for bit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from runtime.bundle.manifest import PreprocessSpec, ProjectorGraph, TilingSection, TowerGraph, VisionSection
from runtime.errors import ImageError
from runtime.preprocess import preprocess
from runtime.tiling import layout_for

PIL = pytest.importorskip("PIL")
Image = pytest.importorskip("PIL.Image")

# Pillow 12 (the last for Python 3.10) resizes tall pictures in another order of passes: off by one step in places.
OFF_BY = 0.0 if int(PIL.__version__.split(".")[0]) >= 13 else 1.01 / 255 / 0.26
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)
SIZES = [(480, 640), (1080, 1920), (640, 480), (336, 336), (50, 50), (97, 301), (1, 1), (1, 400), (400, 1), (333, 337)]


def vision(mode: str, tile_px: int, mean: tuple[float, ...] = HALF, std: tuple[float, ...] = HALF, **tiling: object):
    """A manifest section with what preprocessing and tiling read."""
    resample = tiling.pop("resample", "bicubic")
    edge = tiling.pop("shortest_edge_px", None)
    pad = tiling.pop("pad_rgb", None)
    side = tile_px // 14
    values = {"min_tiles": 1, "max_tiles": 12, "use_thumbnail": True, "scales_px": (), "resize_output_to_scale_idx": 0}
    values |= {"downsample": 1, "tile_all": False, "video_frames": 8} | tiling
    return VisionSection(
        TowerGraph("t.onnx", "tiles", "features", tile_px, side * side, 8, "fp32"),
        ProjectorGraph("p.onnx", "features", "image_embeds", ()),
        PreprocessSpec(mode, resample, edge, 1 / 255, mean, std, pad),
        TilingSection(tile_px=tile_px, patches_per_side=side, **values),
    )


def picture(height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(height * 10_000 + width)
    rgb = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    rgb[: height // 2, : width // 2] = rgb[: height // 2, : width // 2] // 128 * 255
    return rgb


def tiles_of(rgb: np.ndarray, section: VisionSection) -> np.ndarray:
    return preprocess(rgb, layout_for(rgb.shape[0], rgb.shape[1], section.tiling_spec()), section)


def half(image: object) -> np.ndarray:
    """Reference normalisation for mean = std = 0.5 in float64."""
    return (np.asarray(image).transpose(2, 0, 1) / 255.0 - 0.5) / 0.5


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("resample", ["bicubic", "bilinear", "lanczos"])
def test_resize_equals_the_siglip_processor(size: tuple[int, int], resample: str) -> None:
    module = pytest.importorskip("transformers.models.siglip.image_processing_pil_siglip")
    rgb = picture(*size)
    processor = module.SiglipImageProcessorPil(
        size={"height": 224, "width": 224},
        resample=getattr(Image.Resampling, resample.upper()),
        image_mean=list(HALF),
        image_std=list(HALF),
    )
    expected = processor(Image.fromarray(rgb), return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(tiles_of(rgb, vision("resize", 224, resample=resample)), expected, rtol=0, atol=OFF_BY)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(("edge", "tile_px"), [(336, 336), (224, 224), (256, 224), (255, 224)])
def test_crop_equals_the_clip_processor(size: tuple[int, int], edge: int, tile_px: int) -> None:
    module = pytest.importorskip("transformers.models.clip.image_processing_pil_clip")
    rgb = picture(*size)
    processor = module.CLIPImageProcessorPil(
        size={"shortest_edge": edge},
        crop_size={"height": tile_px, "width": tile_px},
        image_mean=list(CLIP_MEAN),
        image_std=list(CLIP_STD),
    )
    expected = processor(Image.fromarray(rgb), return_tensors="np")["pixel_values"]
    section = vision("crop", tile_px, CLIP_MEAN, CLIP_STD, shortest_edge_px=edge)
    np.testing.assert_allclose(tiles_of(rgb, section), expected, rtol=0, atol=OFF_BY)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_pad_equals_a_picture_pasted_on_a_square(size: tuple[int, int]) -> None:
    module = pytest.importorskip("transformers.models.clip.image_processing_pil_clip")
    rgb = picture(*size)
    height, width = size
    side = max(size)
    square = Image.new("RGB", (side, side), tuple(int(value * 255) for value in CLIP_MEAN))
    square.paste(Image.fromarray(rgb), ((side - width) // 2, (side - height) // 2))
    processor = module.CLIPImageProcessorPil(
        size={"shortest_edge": 336},
        crop_size={"height": 336, "width": 336},
        image_mean=list(CLIP_MEAN),
        image_std=list(CLIP_STD),
    )
    expected = processor(square, return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(tiles_of(rgb, vision("pad", 336, CLIP_MEAN, CLIP_STD)), expected, rtol=0, atol=OFF_BY)


def test_a_padding_colour_of_the_manifest_is_used() -> None:
    tiles = tiles_of(picture(1, 40), vision("pad", 28, pad_rgb=(255, 0, 128)))
    assert tiles[0, :, 0, 0].tolist() == pytest.approx([1.0, -1.0, 128 / 127.5 - 1], abs=1e-6)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_dynamic_tiles_are_cut_from_one_picture_and_the_thumbnail_is_last(size: tuple[int, int]) -> None:
    section = vision("dynamic", 56)
    rgb = picture(*size)
    tiles = tiles_of(rgb, section)
    rows, cols = layout_for(*size, section.tiling_spec()).grid
    image = Image.fromarray(rgb)
    whole = image.resize((cols * 56, rows * 56), Image.Resampling.BICUBIC)
    expected = [half(whole.crop((c * 56, r * 56, c * 56 + 56, r * 56 + 56))) for r in range(rows) for c in range(cols)]
    if rows * cols > 1:
        expected.append(half(image.resize((56, 56), Image.Resampling.BICUBIC)))
    np.testing.assert_allclose(tiles, np.stack(expected), atol=max(OFF_BY, 1e-6))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_dynamic_s2_tiles_ascend_by_scale(size: tuple[int, int]) -> None:
    section = vision("dynamic_s2", 28, scales_px=(28, 56, 84), resize_output_to_scale_idx=-1)
    rgb = picture(*size)
    image = Image.fromarray(rgb)
    grid = layout_for(*size, section.tiling_spec()).grid
    expected = []
    for rows, cols in [(1, 1), (2, 2), grid]:
        whole = image.resize((cols * 28, rows * 28), Image.Resampling.BICUBIC)
        cuts = [(c * 28, r * 28, c * 28 + 28, r * 28 + 28) for r in range(rows) for c in range(cols)]
        expected += [half(whole.crop(cut)) for cut in cuts]
    tiles = tiles_of(rgb, section)
    assert tiles.dtype == np.float32 and tiles.flags.c_contiguous
    np.testing.assert_allclose(tiles, np.stack(expected), atol=max(OFF_BY, 1e-6))


def test_gray_pictures_stay_gray() -> None:
    gray = np.repeat(picture(60, 90)[:, :, :1], 3, axis=2)
    tiles = tiles_of(gray, vision("resize", 28))
    np.testing.assert_array_equal(tiles[:, 0], tiles[:, 1])
    np.testing.assert_array_equal(tiles[:, 0], tiles[:, 2])


def test_values_round_as_a_float32_processor_does() -> None:
    """Every pixel value, against the formula in the processors' order of operations."""
    ramp = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2)
    section = vision("resize", 16, CLIP_MEAN, CLIP_STD)
    mean, std = np.array(CLIP_MEAN, np.float32), np.array(CLIP_STD, np.float32)
    expected = ((ramp.astype(np.float64) * (1 / 255)).astype(np.float32) - mean) / std
    np.testing.assert_array_equal(tiles_of(ramp, section)[0], expected.transpose(2, 0, 1))


def test_a_wide_panorama_needs_no_square_in_memory() -> None:
    """Padded it would be 65,000 x 65,000 px (12 GB)."""
    rgb = picture(8, 65_000)
    tiles = tiles_of(rgb, vision("pad", 28))
    assert tiles.shape == (1, 3, 28, 28)
    np.testing.assert_allclose(tiles[0, :, 0, 0], [127 / 127.5 - 1] * 3, atol=1e-6)


@pytest.mark.parametrize("array", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)])
def test_other_arrays_are_refused(array: np.ndarray) -> None:
    section = vision("resize", 28)
    with pytest.raises(ImageError, match="preprocess takes u8"):
        preprocess(array, layout_for(4, 4, section.tiling_spec()), section)


def test_sections_differ_only_in_what_they_say() -> None:
    """Nothing is remembered between calls with different means."""
    rgb = picture(20, 20)
    first = vision("resize", 28)
    second = replace(first, preprocess=replace(first.preprocess, mean=CLIP_MEAN))
    assert not np.array_equal(tiles_of(rgb, first), tiles_of(rgb, second))
    np.testing.assert_array_equal(tiles_of(rgb, first), tiles_of(rgb, first))
