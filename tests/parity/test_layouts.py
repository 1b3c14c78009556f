"""Rung "session" for every layout: the text of `runtime.Session` = torch's, on tiny checkpoints of each kind.

Random weights say nothing that a person could read; the two sides agree only when pixels, tokens, places and positions
do. Torch runs on the dequantised weights of the bundle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig

from export.build import BuildRequest, build
from export.progress import Progress
from models.checkpoint import load_checkpoint
from models.media import Video
from models.tiling import pictures_tiles
from runtime import startup
from runtime.bundle import load_bundle
from runtime.preprocess import preprocess
from runtime.session import Session
from runtime.tiling import layouts_for
from runtime.vision import open_vision
from tests.models import tiny
from tests.parity.decoders import dequantize_decoder, exact_decoder

pytestmark = pytest.mark.torch

GROUP_SIZE, MAX_NEW_TOKENS = 32, 10
CONFIG = GenerationConfig(max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
SIZES = [(28, 28), (90, 60), (40, 130), (200, 50), (33, 47)]
QUESTION = "What is it? <image> </s>"
LITE = {"vision_resolution": -1, "interpolate_mode": "linear", "drop_path_rate": 0.0, "s2": False, "dynamic_s2": False}

CHECKPOINTS: dict[str, Callable[[Path], Path]] = {
    "original llava": tiny.write_original_llava,
    "original llava, marked, padded, linearclip": lambda path: tiny.write_original_llava(
        path, marked=True, aspect="pad", projector="linearclip", tower="clip-vit-tiny", select_feature="cls_patch"
    ),
    "static s2": lambda path: tiny.write_nvila(path, scales=(28, 56, 84), static=True, resize_output_to_scale_idx=1),
    "static s2, clip in tiles": lambda path: tiny.write_nvila(
        path, scales=(28, 56), static=True, resize_output_to_scale_idx=0, clip=True, aspect="dynamic", max_tiles=4
    ),
    "nvila lite": lambda path: tiny.write_nvila(path, scales=None, projector="mlp_downsample_3x3_fix", extra=LITE),
    "vila on llama": lambda path: tiny.write_nvila(path, scales=None, llama=True, clip=True, aspect="pad"),
    "dynamic s2 on llama, plain tiles": lambda path: tiny.write_nvila(path, llama=True, aspect="dynamic", max_tiles=4),
}


def louder(checkpoint: Path) -> Path:
    """VILA's projectors say little with small random weights: twenty times as loud, pictures decide what is said."""
    weights = checkpoint / "mm_projector" / "model.safetensors"
    if weights.is_file():
        tensors = load_file(weights)
        last = max((name for name in tensors if name.endswith("weight")), key=lambda name: int(name.split(".")[1]))
        save_file(tensors | {last: tensors[last] * 20}, weights)
    return checkpoint


@dataclass
class Rung:
    """One checkpoint: torch on dequantised weights, and a session on its bundle."""

    family: str
    model: Any
    bundle: Path
    session: Session

    def torch_text(self, parts: list[Any]) -> str:
        options = {"quant_llm": False} if self.family == "nvila" else {}
        return str(self.model.generate_content(parts, CONFIG, **options))

    def session_text(self, images: list[np.ndarray], **options: Any) -> str:
        return self.session.generate(QUESTION, images, max_new_tokens=MAX_NEW_TOKENS, **options).text.strip()


@pytest.fixture(scope="module", params=CHECKPOINTS)
def rung(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rung]:
    folder = tmp_path_factory.mktemp("layout")
    checkpoint = louder(CHECKPOINTS[request.param](folder / "checkpoint"))
    model, family = load_checkpoint(checkpoint)
    dequantize_decoder(model, family, GROUP_SIZE)
    build(BuildRequest(checkpoint, folder / "bundle", group_size=GROUP_SIZE), Progress())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(startup, "open_decoder", exact_decoder(checkpoint, folder / "exact", GROUP_SIZE))
        session = Session.open(folder / "bundle", threads=1)
    with session:
        yield Rung(family, model, folder / "bundle", session)


def test_pixels_and_layouts_are_those_of_the_models(rung: Rung) -> None:
    vision = load_bundle(rung.bundle).manifest.vision
    spec, of_model = vision.tiling_spec(), rung.model.tiling_spec()
    processor = rung.model.get_vision_tower().image_processor
    for size in SIZES:
        image = tiny.picture(*size)
        (expected,), (layout,) = pictures_tiles([image], of_model, processor)
        (found,) = layouts_for([(image.height, image.width)], spec)
        assert found == layout
        np.testing.assert_array_equal(preprocess(np.asarray(image), found, vision), expected.numpy())


def test_embeddings_are_those_of_the_models(rung: Rung) -> None:
    """Both graphs as the runtime runs them, on grids of several shapes."""
    bundle = load_bundle(rung.bundle)
    vision, engine = bundle.manifest.vision, open_vision(bundle, threads=1)
    for size in SIZES:
        image = np.asarray(tiny.picture(*size))
        (layout,) = layouts_for([image.shape[:2]], vision.tiling_spec())
        tiles = preprocess(image, layout, vision)
        with torch.no_grad():
            expected = rung.model.encode_images(torch.from_numpy(tiles)).flatten(0, 1).numpy()
        limit = 1e-5 * np.abs(expected).max()
        np.testing.assert_allclose(engine.encode(tiles, layout), expected, rtol=0, atol=limit)
    engine.close()


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_one_image(rung: Rung, size: tuple[int, int]) -> None:
    image = tiny.picture(*size, seed=sum(size))
    assert rung.session_text([np.asarray(image)]) == rung.torch_text([image, QUESTION])


def test_two_images_video_and_text_alone(rung: Rung) -> None:
    images = [tiny.picture(70, 40, seed=1), tiny.picture(30, 30, seed=2)]
    arrays = [np.asarray(image) for image in images]
    assert rung.session_text(arrays) == rung.torch_text([*images, QUESTION])
    assert rung.session_text([], video=arrays * 2) == rung.torch_text([Video(images * 2), QUESTION])
    assert rung.session_text([]) == rung.torch_text([QUESTION])


def test_answers_depend_on_the_picture(rung: Rung) -> None:
    pictures = [np.asarray(tiny.picture(60, 60, seed=seed)) for seed in range(6)]
    assert len({rung.session_text([image]) for image in pictures}) > 1


def test_prompt_of_a_picture_in_one_tile_has_its_line_break(rung: Rung) -> None:
    """The published code writes "<image>\n" once for each tile, for one tile too."""
    prompt = load_bundle(rung.bundle).manifest.prompt
    mode = load_bundle(rung.bundle).manifest.vision.preprocess.mode
    assert prompt.image.text_after == ("\n" if mode == "dynamic" or rung.family == "llava" else "")
