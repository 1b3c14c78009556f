"""Pixels for the layouts of ``runtime.tiling``: pictures cut with Pillow and made into tensors by the tower's
processor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import Tensor

from runtime.errors import ExportError
from runtime.tiling import TileLayout, TilingSpec, layout_for, layouts_for

ANY_PATCHES = 1  # geometry alone does not depend on the patches of a tile


def dynamic_preprocess(
    image: Image.Image, min_num: int = 1, max_num: int = 12, image_size: int = 448, use_thumbnail: bool = True
) -> list[Image.Image]:
    """Tiles of ``image_size`` px squared, row by row; with more than one of them the whole picture comes last.

    The picture is resized (bicubic) to the grid of at least ``min_num`` and at most ``max_num`` tiles nearest in shape.
    """
    spec = TilingSpec("dynamic", image_size, ANY_PATCHES, min_num, max_num, use_thumbnail)
    return cut_tiles(image, layout_for(image.height, image.width, spec), image_size)


def dynamic_s2_preprocess(
    image: Image.Image, s2_scales: Sequence[int] = (448, 896, 1344), max_num: int = 12, image_size: int = 448
) -> tuple[list[Image.Image], tuple[int, int]]:
    """Tiles of every scale, ascending, and the (rows, cols) of the last one.

    Scales but the last are squares; the last one has the grid nearest in shape with at least (s_last / s_first)^2 and
    at most ``max_num`` tiles.
    """
    first = s2_scales[0]
    scales = tuple(image_size * (scale // first) for scale in s2_scales)
    spec = TilingSpec("dynamic_s2", image_size, ANY_PATCHES, max_tiles=max_num, scales_px=scales)
    layout = layout_for(image.height, image.width, spec)
    return cut_tiles(image, layout, image_size), layout.grid


def cut_tiles(image: Image.Image, layout: TileLayout, tile_px: int) -> list[Image.Image]:
    """The tiles of ``layout`` as pictures; each size that the layout asks for is resized to once (bicubic)."""
    resized: dict[tuple[int, int], Image.Image] = {}
    tiles = []
    for box in layout.tiles:
        size = (box.resize_w, box.resize_h)
        if size not in resized:
            resized[size] = image.resize(size, Image.Resampling.BICUBIC)
        tiles.append(resized[size].crop((box.left, box.top, box.left + tile_px, box.top + tile_px)))
    return tiles


def pad_to_square(image: Image.Image, colour: tuple[int, int, int]) -> Image.Image:
    """The picture centred on a square of its longer side."""
    side = max(image.size)
    if image.width == image.height:
        return image
    square = Image.new("RGB", (side, side), colour)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def pad_colour(processor: Any) -> tuple[int, int, int]:
    """The processor's mean as an 8-bit colour, which normalises to about 0."""
    red, green, blue = (int(mean * 255) for mean in processor.image_mean)
    return red, green, blue


def to_rgb(image: Image.Image) -> Image.Image:
    """Upright RGB: EXIF orientation applied, transparency laid over black, other modes converted by Pillow."""
    image = ImageOps.exif_transpose(image)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        over = Image.new("RGBA", rgba.size, (0, 0, 0, 255))
        return Image.alpha_composite(over, rgba).convert("RGB")
    return image.convert("RGB")


def picture_tiles(image: Image.Image, layout: TileLayout, spec: TilingSpec, processor: Any) -> Tensor:
    """Normalised tiles f32 [T, 3, S, S] of one RGB picture.

    Tiled modes are cut here and normalised by the processor; the others go through the processor as a whole.
    """
    if spec.mode == "pad":
        image = pad_to_square(image, pad_colour(processor))
    if spec.mode in ("pad", "crop"):
        return pixel_values([image], processor)
    return pixel_values(cut_tiles(image, layout, spec.tile_px), processor)


def pixel_values(images: Sequence[Image.Image], processor: Any) -> Tensor:
    """[n, 3, S, S] from the processor."""
    values: Tensor = processor.preprocess(list(images), return_tensors="pt")["pixel_values"]
    return values


def pictures_tiles(
    images: Sequence[Image.Image], spec: TilingSpec, processor: Any
) -> tuple[list[Tensor], list[TileLayout]]:
    """Tiles and layout of every picture of one request; whether they are tiled is ``runtime.tiling.layouts_for``'s
    rule.
    """
    upright = [to_rgb(image) for image in images]
    layouts = layouts_for([(image.height, image.width) for image in upright], spec)
    return [picture_tiles(i, layout, spec, processor) for i, layout in zip(upright, layouts, strict=True)], layouts


def processor_tile_px(processor: Any) -> int:
    """Side of the square that the processor makes. Raises ExportError when it is not a square."""
    size = processor.crop_size if getattr(processor, "do_center_crop", False) else processor.size
    height, width = _side(size, "height"), _side(size, "width")
    if height is None and width is None:
        height = width = _side(size, "shortest_edge")
    if height is None or height != width:
        raise ExportError(f"the image processor makes pictures of {dict(size)}", hint="height and width must be equal")
    return height


def llava_tiling_spec(model: Any) -> TilingSpec:
    """How a LLaVA model takes pictures: padded when the configuration says so, else as its processor does it."""
    tower = model.get_vision_tower()
    processor, aspect = tower.image_processor, getattr(model.config, "image_aspect_ratio", None)
    if aspect not in (None, "", "square", "pad"):
        raise ExportError(f"image_aspect_ratio is {aspect!r}", hint="square and pad are supported")
    for key in ("s2", "dynamic_s2"):
        if getattr(model.config, key, False):
            raise ExportError(f"{key} with LLaVA's own layout", hint="S² is served in VILA's three folders")
    mode = "pad" if aspect == "pad" else processor_mode(processor)
    keeps_class = tower.select_feature == "cls_patch"
    return TilingSpec(
        mode,
        _checked_tile_px(tower),
        tower.num_patches_per_side,
        max_tiles=1,
        use_thumbnail=False,
        shortest_edge_px=_side(processor.size, "shortest_edge") or 0 if mode == "crop" else 0,
        class_tokens=tower.class_tokens if keeps_class else 0,
    )


def processor_mode(processor: Any) -> str:
    """ "crop" for a processor that cuts the centre of what it resized by its shortest edge, else "resize"."""
    cuts = getattr(processor, "do_center_crop", False) and _side(processor.size, "shortest_edge") is not None
    return "crop" if cuts else "resize"


def _checked_tile_px(tower: Any) -> int:
    tile_px, expected = processor_tile_px(tower.image_processor), int(tower.processed_side)
    if tile_px != expected:
        raise ExportError(
            f"the image processor makes tiles of {tile_px} px, the vision tower takes {expected}",
            hint="set size in preprocessor_config.json",
        )
    return tile_px


def nvila_tiling_spec(model: Any) -> TilingSpec:
    """How an NVILA model takes pictures, from ``image_aspect_ratio``, the S² fields and the projector."""
    config, tower = model.config, model.get_vision_tower()
    aspect = getattr(config, "image_aspect_ratio", None) or "resize"
    scales: tuple[int, ...] = ()
    if "dynamic_s2" in aspect and config.dynamic_s2:
        mode, scales = "dynamic_s2", tuple(tower.scales)
    elif "dynamic" in aspect:
        mode = "dynamic"
    else:
        mode = aspect if aspect in ("resize", "pad") else processor_mode(tower.image_processor)
    return TilingSpec(
        mode,
        _checked_tile_px(tower),
        tower.num_patches_per_side,
        min_tiles=config.min_tiles,
        max_tiles=config.max_tiles,
        use_thumbnail=mode == "dynamic",
        scales_px=scales,
        resize_output_to_scale_idx=config.s2_resize_output_to_scale_idx if scales else 0,
        downsample=model.get_mm_projector().downsample,
        tile_all=bool(getattr(config, "tile_all", False)),
        video_frames=getattr(config, "num_video_frames", None) or 8,
    )


def _side(size: Any, name: str) -> int | None:
    value = size.get(name) if isinstance(size, dict) else getattr(size, name, None)
    return None if value is None else int(value)


def stack_tiles(tiles: Sequence[Tensor]) -> Tensor:
    """Tiles of several pictures [T, 3, S, S] on one batch."""
    return torch.cat(list(tiles))
