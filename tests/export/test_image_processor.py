"""preprocessor_config.json as the manifest has it: what transformers' processors write, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from export.image_processor import read_image_processor
from runtime.errors import ExportError
from tests.export.small_checkpoints import put

SQUARE = {"height": 28, "width": 28}
CLIP = {"image_processor_type": "CLIPImageProcessor"}


def read(folder: Path, **values: Any) -> Any:
    put(folder / "preprocessor_config.json", CLIP | values)
    return read_image_processor(folder)


def test_clip_cuts_the_centre_of_the_shortest_edge(tmp_path: Path) -> None:
    processor = read(tmp_path, size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}, resample=3)
    assert (processor.tile_px, processor.mode, processor.shortest_edge_px) == (336, "crop", 336)
    group = processor.preprocess("crop")
    assert (group.resample, group.shortest_edge_px, group.pad_rgb) == ("bicubic", 336, None)
    assert group.mean == pytest.approx((0.48145466, 0.4578275, 0.40821073))
    wider = read(tmp_path, size={"shortest_edge": 32}, crop_size=28)
    assert (wider.tile_px, wider.shortest_edge_px) == (28, 32)


def test_square_size_is_a_plain_resize(tmp_path: Path) -> None:
    processor = read(tmp_path, size=SQUARE, do_center_crop=False, resample=2)
    assert (processor.tile_px, processor.mode, processor.shortest_edge_px) == (28, "resize", None)
    assert processor.resample == "bilinear"
    cropped_to_itself = read(tmp_path, size=SQUARE, crop_size=SQUARE, do_center_crop=True)
    assert cropped_to_itself.mode == "resize"


def test_padding_processor_pads_with_its_mean(tmp_path: Path) -> None:
    processor = read(
        tmp_path,
        image_processor_type="LlavaImageProcessor",
        do_pad=True,
        size={"shortest_edge": 28},
        crop_size=SQUARE,
        image_mean=[0.5, 0.25, 0.999],
    )
    assert (processor.tile_px, processor.mode) == (28, "pad")
    assert processor.preprocess("pad").pad_rgb == (127, 63, 254)


def test_steps_that_are_switched_off_change_nothing(tmp_path: Path) -> None:
    processor = read(tmp_path, size=SQUARE, do_center_crop=False, do_rescale=False, do_normalize=False)
    assert (processor.rescale, processor.mean, processor.std) == (1.0, (0.0,) * 3, (1.0,) * 3)


def test_processor_inside_processor_config_is_read(tmp_path: Path) -> None:
    inner = {"image_processor_type": "SiglipImageProcessor", "size": SQUARE}
    put(tmp_path / "processor_config.json", {"processor_class": "LlavaProcessor", "image_processor": inner})
    processor = read_image_processor(tmp_path)
    assert (processor.tile_px, processor.mean) == (28, (0.5, 0.5, 0.5))


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"image_processor_type": "DonutImageProcessor"}, "image_processor_type"),
        ({"do_resize": False}, "do_resize"),
        ({"do_resize": "yes"}, "do_resize"),
        ({"size": {"height": 28, "width": 32}}, "size"),
        ({"size": {"shortest_edge": 28}}, "size"),
        ({"size": "28"}, "size"),
        ({"size": {"height": 0, "width": 0}}, "size"),
        ({"size": {"shortest_edge": 20}, "do_center_crop": True, "crop_size": 28}, "shortest_edge"),
        ({"size": {"height": 32, "width": 32}, "do_center_crop": True, "crop_size": 28}, "crop_size"),
        ({"resample": 9}, "resample"),
        ({"resample": True}, "resample"),
        ({"rescale_factor": "1/255"}, "rescale_factor"),
        ({"image_mean": [0.5]}, "image_mean"),
        ({"image_mean": [0.5, 0.5, "x"]}, "image_mean"),
        ({"image_std": [0.5, 0.5, 0.0]}, "image_std"),
    ],
)
def test_wrong_value_is_refused_by_its_key(tmp_path: Path, values: Any, key: str) -> None:
    with pytest.raises(ExportError, match=key) as refused:
        read(tmp_path, **{"size": SQUARE, "do_center_crop": False, **values})
    assert refused.value.hint


def test_missing_description_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="preprocessor_config"):
        read_image_processor(tmp_path)
    put(tmp_path / "processor_config.json", {"processor_class": "LlavaProcessor"})
    with pytest.raises(ExportError, match="no description"):
        read_image_processor(tmp_path)


@pytest.mark.torch
@pytest.mark.parametrize("kind", ["clip", "clip square", "siglip"])
def test_processors_of_transformers_are_read_as_they_behave(tmp_path: Path, kind: str) -> None:
    pytest.importorskip("transformers")
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    if kind == "siglip":
        saved = SiglipImageProcessorPil(size=SQUARE)
    elif kind == "clip":
        saved = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size=SQUARE)
    else:
        saved = CLIPImageProcessorPil(size=SQUARE, do_center_crop=False)
    saved.save_pretrained(tmp_path)
    processor = read_image_processor(tmp_path)
    assert processor.tile_px == 28
    assert processor.mode == ("crop" if kind == "clip" else "resize")
    assert processor.mean == tuple(saved.image_mean)
    assert processor.std == tuple(saved.image_std)
    assert processor.rescale == saved.rescale_factor
    assert processor.resample == {2: "bilinear", 3: "bicubic"}[int(saved.resample)]
