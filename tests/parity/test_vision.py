"""Rung "vision" of the parity ladder: pixels to image embeddings, runtime = torch, on the embedded bundles.

The other side is as independent as there is one: transformers' whole LLaVA with its own image processor, VILA's merge
in `models.nvila`, and the gather by index that the demo model was trained with.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from transformers import AutoImageProcessor, LlavaForConditionalGeneration

from models.checkpoint import load_checkpoint
from models.tiling import dynamic_s2_preprocess, pixel_values
from runtime.bundle import Bundle, load_bundle
from runtime.preprocess import preprocess
from runtime.sources.scene_render import render, sample_look
from runtime.sources.scenes import sample_scene
from runtime.tiling import layout_for
from runtime.vision import VisionEngine, open_vision
from scripts.demo_model.batches import prepare
from scripts.demo_model.release import load_for_evaluation

ROOT = Path(__file__).resolve().parents[2]
SIZES = [(96, 96), (160, 120), (120, 160), (640, 480), (400, 100), (90, 500), (300, 50), (33, 47)]
TOLERANCE = 1e-4


def picture(width: int, height: int) -> np.ndarray:
    """A rendered scene u8 [height, width, 3]."""
    rng = np.random.default_rng([width, height])
    scene = sample_scene(rng, width / height, count=2)
    return render(scene, sample_look(rng), rng, width, height)


class Eyes:
    """The vision half of an embedded bundle."""

    def __init__(self, name: str) -> None:
        self.bundle: Bundle = load_bundle(ROOT / "runtime" / "demo" / name)
        self.engine: VisionEngine = open_vision(self.bundle, threads=1)

    def see(self, image: np.ndarray) -> np.ndarray:
        vision = self.bundle.manifest.vision
        layout = layout_for(image.shape[0], image.shape[1], vision.tiling_spec())
        return self.engine.encode(preprocess(image, layout, vision), layout)


@pytest.fixture(scope="module")
def llava_eyes() -> Iterator[Eyes]:
    eyes = Eyes("demo-llava")
    yield eyes
    eyes.engine.close()


@pytest.fixture(scope="module")
def nvila_eyes() -> Iterator[Eyes]:
    eyes = Eyes("demo-nvila")
    yield eyes
    eyes.engine.close()


@pytest.fixture(scope="module")
def transformers_llava() -> LlavaForConditionalGeneration:
    return LlavaForConditionalGeneration.from_pretrained(ROOT / "models/demo/demo-llava", dtype=torch.float32).eval()


@pytest.mark.parametrize(("width", "height"), SIZES)
@torch.no_grad()
def test_llava_embeddings_are_those_of_transformers(
    llava_eyes: Eyes, transformers_llava: LlavaForConditionalGeneration, width: int, height: int
) -> None:
    image = picture(width, height)
    processor = AutoImageProcessor.from_pretrained(ROOT / "models/demo/demo-llava", use_fast=False)
    pixels = processor(PIL.Image.fromarray(image), return_tensors="pt")["pixel_values"]
    found = transformers_llava.get_image_features(pixel_values=pixels)
    features = found if isinstance(found, (tuple, list)) else found.pooler_output
    (expected,) = features
    np.testing.assert_allclose(llava_eyes.see(image), expected.reshape(36, -1).numpy(), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(("width", "height"), SIZES)
@torch.no_grad()
def test_nvila_embeddings_are_those_of_the_models_merge(nvila_eyes: Eyes, width: int, height: int) -> None:
    image = picture(width, height)
    model, _ = load_checkpoint(ROOT / "models" / "demo" / "demo-nvila")
    tiles, grid = dynamic_s2_preprocess(PIL.Image.fromarray(image), [64, 128], 6, 64)
    pixels = pixel_values(tiles, model.get_vision_tower().image_processor)
    (expected,) = model.encode_images(pixels, block_sizes=[grid])
    np.testing.assert_allclose(nvila_eyes.see(image), expected.float().numpy(), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(("width", "height"), SIZES)
@torch.no_grad()
def test_nvila_embeddings_are_those_that_it_was_trained_on(nvila_eyes: Eyes, width: int, height: int) -> None:
    image = picture(width, height)
    model, packer = load_for_evaluation("demo-nvila", ROOT / "models" / "demo" / "demo-nvila")
    vision = prepare([image], packer.family)
    assert vision.index is not None
    expected = model.image_tokens(model.features(vision.tiles, vision.index.fine, vision.index.coarse))
    np.testing.assert_allclose(nvila_eyes.see(image), expected.numpy(), rtol=0, atol=TOLERANCE)
