"""Calibration prompts reach the decoder as the model itself makes them, with its weights left on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlavaForConditionalGeneration

from export.quantization.calibration import Sample
from export.quantization.front import load_front
from export.quantization.source import DecoderSource
from models.checkpoint import load_checkpoint
from models.fusion import IMAGE_TOKEN_INDEX
from models.media import Image
from runtime.errors import ExportError
from tests.models.tiny import picture, write_llava, write_nvila, write_original_llava

CPU = torch.device("cpu")
LAYOUTS: dict[str, Callable[[Path], Path]] = {
    "llava": write_llava,
    "original": write_original_llava,
    "dynamic S²": write_nvila,
    "dynamic tiles": lambda path: write_nvila(path, scales=None),
    "CLIP": lambda path: write_nvila(path, scales=(28, 56, 84), clip=True),
}


def pictures(folder: Path, count: int) -> tuple[Path, ...]:
    paths = tuple(folder / f"{index}.png" for index in range(count))
    for index, path in enumerate(paths):
        picture(61 + 40 * index, 45, index).save(path)
    return paths


@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_embeddings_are_those_of_the_whole_model(tmp_path: Path, layout: str) -> None:
    root = LAYOUTS[layout](tmp_path / "c")
    shown = pictures(tmp_path, 2)
    samples = [Sample("What is this?", shown[:count]) for count in range(3)]
    with DecoderSource(root) as source, load_front(root, source, CPU) as front:
        found = [front.prompt(sample, 10_000) for sample in samples]
        cut = front.prompt(samples[1], 30)
    model, family = load_checkpoint(root)
    for sample, embedded in zip(samples, found, strict=True):
        ids, *media = model.prepare_prompt([*map(Image, sample.images), sample.text])
        if family == "nvila":
            wanted = model._embed(ids, *media, None, None)[0][0]
        elif sample.images:
            wanted = model.prepare_inputs_labels_for_multimodal(ids, None, None, None, None, media[0])[4][0]
        else:
            wanted = model.get_model().embed_tokens(ids)[0]
        torch.testing.assert_close(embedded.states, wanted, rtol=1e-5, atol=1e-5)
        places = {IMAGE_TOKEN_INDEX} if family == "llava" else set(model.tokenizer.media_token_ids.values())
        assert embedded.is_text.sum() == sum(token not in places for token in ids[0].tolist())
        table = model.get_input_embeddings() if family == "llava" else model.get_llm().get_input_embeddings()
        rows = (embedded.states[:, None] == table.weight[None]).all(2).any(1)
        assert not (embedded.is_text & ~rows).any(), "text is made of rows of the table"
    assert torch.equal(cut.states, found[1].states[:30]) and torch.equal(cut.is_text, found[1].is_text[:30])


@torch.no_grad()
def test_llava_embeddings_are_those_of_transformers(tmp_path: Path) -> None:
    root = write_llava(tmp_path / "c")
    sample = Sample("What is this?", pictures(tmp_path, 1))
    with DecoderSource(root) as source, load_front(root, source, CPU) as front:
        found = front.prompt(sample, 10_000)
        ids, pixels = front.prepare_prompt([Image(sample.images[0]), sample.text])  # type: ignore[attr-defined]
    model = LlavaForConditionalGeneration.from_pretrained(root).eval()
    image = model.config.image_token_id
    whole = ids[0].repeat_interleave(torch.where(ids[0] == IMAGE_TOKEN_INDEX, 16, 1))[None]
    whole = torch.where(whole == IMAGE_TOKEN_INDEX, image, whole)
    states = model(input_ids=whole, pixel_values=pixels, output_hidden_states=True).hidden_states[0]
    torch.testing.assert_close(found.states, states[0], rtol=1e-5, atol=1e-5)
    assert torch.equal(found.is_text, whole[0] != image)


def test_a_tower_that_gives_no_numbers_is_named_with_the_picture(tmp_path: Path) -> None:
    root = write_nvila(tmp_path / "c")
    path = root / "mm_projector" / "model.safetensors"
    save_file({name: tensor * float("nan") for name, tensor in load_file(path).items()}, path, {"format": "pt"})
    sample = Sample("What is this?", pictures(tmp_path, 1))
    with DecoderSource(root) as source, load_front(root, source, CPU) as front:
        with pytest.raises(ExportError, match=r"the embeddings of .*0\.png are not finite"):
            front.prompt(sample, 100)
        assert len(front.prompt(Sample("No picture."), 100).states)
