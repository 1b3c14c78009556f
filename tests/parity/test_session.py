"""Rung "session" of the parity ladder: the text of `runtime.Session` = the text of torch's ``generate_content``.

Torch runs on the dequantised weights of the bundle. The bundle is the one that export builds; its decoder runs at
accuracy level 0 here, where equal text is a matter of correctness, and at level 4, as shipped, in one test.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from transformers import GenerationConfig

from export.build import BuildRequest, build
from export.progress import Progress
from models.checkpoint import load_checkpoint
from models.media import Video
from runtime import startup
from runtime.prompt import ImagePart, Message
from runtime.session import Session
from scripts.demo_model.evalset import eval_items
from tests.parity.decoders import dequantize_decoder, exact_decoder

ROOT = Path(__file__).parents[2]
MAX_NEW_TOKENS, GROUP_SIZE = 48, 128
CONFIG = GenerationConfig(max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
QUESTIONS = ("Describe the image.", "How many shapes are there?", "What is it? <image> </s>")


@dataclass
class Rung:
    """One checkpoint: torch on dequantised weights, its bundle, and a session at accuracy level 0."""

    family: str
    model: Any
    bundle: Path
    session: Session

    def torch_text(self, parts: list[Any]) -> str:
        options = {"quant_llm": False} if self.family == "nvila" else {}
        return str(self.model.generate_content(parts, CONFIG, **options))

    def session_text(self, prompt: str, images: list[np.ndarray], **options: Any) -> str:
        return self.session.generate(prompt, images, max_new_tokens=MAX_NEW_TOKENS, **options).text.strip()

    def scenes(self, count: int, seed: int = 21) -> list[np.ndarray]:
        return [item.image for item in eval_items(count, seed, f"demo-{self.family}")]


@pytest.fixture(scope="module", params=["llava", "nvila"])
def rung(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rung]:
    checkpoint = ROOT / "models" / "demo" / f"demo-{request.param}"
    folder = tmp_path_factory.mktemp(request.param)
    model, family = load_checkpoint(checkpoint)
    dequantize_decoder(model, family, GROUP_SIZE)
    build(BuildRequest(checkpoint, folder / "bundle", group_size=GROUP_SIZE), Progress())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(startup, "open_decoder", exact_decoder(checkpoint, folder / "exact", GROUP_SIZE))
        session = Session.open(folder / "bundle", threads=1)
    with session:
        yield Rung(request.param, model, folder / "bundle", session)


def picture(image: np.ndarray) -> PIL.Image.Image:
    return PIL.Image.fromarray(image)


def resized(image: np.ndarray, width: int, height: int) -> np.ndarray:
    return np.asarray(picture(image).resize((width, height)))


def test_one_image(rung: Rung) -> None:
    texts = set()
    for image in rung.scenes(8):
        for question in QUESTIONS[:2]:
            expected = rung.torch_text([picture(image), question])
            assert rung.session_text(question, [image]) == expected
            texts.add(expected)
    assert len(texts) > 4  # a model that says the same of everything would prove little


@pytest.mark.parametrize(("width", "height"), [(400, 90), (90, 400), (320, 240), (1, 1), (7, 300), (97, 101)])
def test_wide_tall_and_odd_images(rung: Rung, width: int, height: int) -> None:
    for image in rung.scenes(3, seed=22):
        shape = resized(image, width, height)
        assert rung.session_text(QUESTIONS[0], [shape]) == rung.torch_text([picture(shape), QUESTIONS[0]])


def test_three_images(rung: Rung) -> None:
    scenes = rung.scenes(9, seed=23)
    for start in range(0, 9, 3):
        three = [scenes[start], resized(scenes[start + 1], 300, 120), scenes[start + 2]]
        expected = rung.torch_text([*map(picture, three), QUESTIONS[0]])
        assert rung.session_text(QUESTIONS[0], three) == expected


@pytest.mark.parametrize("count", [20, 3])
def test_video(rung: Rung, count: int) -> None:
    frames = rung.scenes(count, seed=24)
    expected = rung.torch_text([Video([picture(frame) for frame in frames]), QUESTIONS[0]])
    assert rung.session_text(QUESTIONS[0], [], video=frames) == expected


def test_video_of_a_folder_of_frames(rung: Rung, tmp_path: Path) -> None:
    for index, frame in enumerate(rung.scenes(11, seed=25)):
        picture(frame).save(tmp_path / f"{index:03}.png")
    expected = rung.torch_text([Video(tmp_path), QUESTIONS[0]])
    assert rung.session_text(QUESTIONS[0], [], video=tmp_path) == expected


def test_text_alone_and_special_tokens_in_it(rung: Rung) -> None:
    for question in QUESTIONS:
        assert rung.session_text(question, []) == rung.torch_text([question])
    (image,) = rung.scenes(1, seed=26)
    assert rung.session_text(QUESTIONS[2], [image]) == rung.torch_text([picture(image), QUESTIONS[2]])


def test_answer_is_torchs_tokens_too(rung: Rung) -> None:
    tokenizer = rung.model.tokenizer
    for image in rung.scenes(3, seed=27):
        answer = rung.session.generate(QUESTIONS[0], [image], max_new_tokens=MAX_NEW_TOKENS)
        assert tokenizer.decode(list(answer.token_ids), skip_special_tokens=True).lstrip() == answer.text
        assert answer.finish_reason == "stop"


def test_chat_equals_a_fresh_request_with_the_whole_conversation(rung: Rung) -> None:
    first, second = rung.scenes(2, seed=28)
    chat, said, shown = rung.session.chat(), [], []
    for question, images in [(QUESTIONS[0], [first]), (QUESTIONS[1], []), (QUESTIONS[0], [second])]:
        answer = chat.generate(question, images, max_new_tokens=MAX_NEW_TOKENS)
        places = (ImagePart(len(shown) + index) for index in range(len(images)))
        said.append(Message("user", (*places, question)))
        shown += images
        fresh = rung.session.generate(said, shown, max_new_tokens=MAX_NEW_TOKENS)
        assert (answer.text, answer.token_ids) == (fresh.text, fresh.token_ids)
        said.append(Message("assistant", (answer.text,)))
        if len(said) > 2:
            assert answer.usage.cached_tokens > answer.usage.prompt_tokens // 3


def test_bundle_as_shipped_says_the_same(rung: Rung) -> None:
    scenes = rung.scenes(25, seed=29)
    with Session.open(rung.bundle, threads=1, verify="full") as shipped:
        said = [shipped.generate(QUESTIONS[0], [image], max_new_tokens=MAX_NEW_TOKENS).text for image in scenes]
    same = [text == rung.session_text(QUESTIONS[0], [image]) for text, image in zip(said, scenes, strict=True)]
    assert sum(same) >= 24


def test_an_image_and_a_video(rung: Rung) -> None:
    """The image is tiled as if it were alone; frames never are."""
    image, *frames = rung.scenes(9, seed=30)
    expected = rung.torch_text([picture(image), Video([picture(frame) for frame in frames]), QUESTIONS[0]])
    assert rung.session_text(QUESTIONS[0], [image], video=frames) == expected
