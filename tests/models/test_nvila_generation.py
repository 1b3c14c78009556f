"""NVILA from prompts to ids: every door gives the same answer, and settings are honoured by name."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from models.media import Image, Video
from models.prompts import complete_generation_config
from runtime.errors import ConfigError, InputError, PromptError
from tests.models.tiny import CHATML, PARTS_MACRO, picture

DYNAMIC: dict[str, Any] = {"scales": None}
SHORT = GenerationConfig(max_new_tokens=6)


def text_ids(model: Any, text: str) -> list[int]:
    ids: list[int] = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


PROMPTS = {
    "one": lambda: [picture(90, 40), "what is it?"],
    "three": lambda: [picture(90, 40), "a", picture(30, 70, 1), "b", picture(28, 28, 2), "c"],
    "video": lambda: [Video([picture(30, 30, seed) for seed in range(6)]), "what happens?"],
    "text": lambda: "hello {there}",
}


@pytest.mark.parametrize("name", PROMPTS)
@pytest.mark.parametrize("options", [{}, DYNAMIC], ids=["dynamic_s2", "dynamic"])
@pytest.mark.parametrize("quant", [False, True], ids=["full", "int4"])
def test_behaviour_23_generate_content_generate_and_stream_give_the_same_ids(name, options, quant, loaded) -> None:
    model = loaded("nvila", **options)
    ids, media, config = model.prepare_prompt(PROMPTS[name]())
    settings = model._completed(GenerationConfig(max_new_tokens=6))
    generated = model.generate(ids, media, config, quant_llm=quant, generation_config=settings)[0].tolist()
    assert (
        model.generate_content(PROMPTS[name](), SHORT, quant)
        == model.tokenizer.decode(generated, skip_special_tokens=True).strip()
    )
    assert stream(model, ids, media, config, 0, quant) == (generated, generated)


def stream(model: Any, ids: Any, media: Any, config: Any, start: int, quant: bool) -> tuple[list[int], list[int]]:
    """Greedy ids by single steps on the cache, and by feeding the whole conversation again for each token."""
    logits, length = model.stream_gen(ids, media, config, start, True, quant)
    assert logits.shape[:2] == (1, 1)
    stops, new, position = model.tokenizer.stop_token_ids, [], start + length
    while len(new) < 6:
        new.append(int(logits.argmax()))
        if new[-1] in stops:
            break
        logits, fed = model.stream_gen(torch.tensor([new[-1:]]), None, None, position, True, quant)
        position += fed
    whole: list[int] = []
    while len(whole) < len(new):
        again = torch.cat([ids, torch.tensor([whole], dtype=torch.long)], dim=1)
        logits, _ = model.stream_gen(again, media, config, 0, False, quant)
        whole.append(int(logits.argmax()))
    return new, whole


@pytest.mark.parametrize("structured", [False, True], ids=["plain", "parts"])
def test_behaviour_39_one_token_of_a_tiled_picture_is_expanded_as_generate_content_writes_it(
    structured, loaded
) -> None:
    parts = PARTS_MACRO + CHATML.replace("message['content']", "text(message['content'])")
    model = loaded("nvila", **DYNAMIC, **({"template": parts} if structured else {}))
    ids, media, _ = model.prepare_prompt([picture(90, 40), "why?"])
    assert len(media["image"]) > 2
    image = model.tokenizer.media_token_ids["image"]
    newline = text_ids(model, "\n")
    places = torch.where(ids[0] == image)[0].tolist()
    single = torch.tensor([ids[0, : places[0] + 1].tolist() + newline * structured + ids[0, places[-1] + 2 :].tolist()])
    assert int((single == image).sum()) == 1
    streamed, _ = model.stream_gen(single, media, None, 0, True, False)
    embeds, _, _ = model._embed(ids, media, None, None, None)
    assert torch.equal(streamed, model.llm(inputs_embeds=embeds, logits_to_keep=1).logits)


def test_behaviour_20_a_history_in_two_chunks_equals_one_pass_and_the_cache_refuses_overflow(loaded) -> None:
    model = loaded("nvila")
    ids, media, config = model.prepare_prompt([picture(90, 40), "what is it?"])
    more = torch.tensor([text_ids(model, "and why?")])
    _, length = model.stream_gen(ids, media, config, 0, True, False)
    chunked, _ = model.stream_gen(more, None, None, length, True, False)
    whole, total = model.stream_gen(torch.cat([ids, more], dim=1), media, config, 0, True, False)
    torch.testing.assert_close(chunked, whole, atol=1e-5, rtol=1e-5)
    assert total == length + more.shape[1]
    rolled, _ = model.stream_gen(
        more[:, -1:], None, None, total - 1, True, False
    )  # step back and repeat the last token
    torch.testing.assert_close(rolled, whole, atol=1e-5, rtol=1e-5)
    with pytest.raises(PromptError, match="cache holds"):
        model.stream_gen(more, None, None, 1900, True, False)
    with pytest.raises(PromptError, match="chunk_prefilling"):
        model.stream_gen(more, None, None, length, False, False)
    with pytest.raises(PromptError, match="exceed the decoder's 2048"):
        model.stream_gen(torch.zeros(1, 2048, dtype=torch.long), None, None, length, True, False)


def test_behaviour_37_parts_may_be_paths_pictures_and_arrays(loaded, tmp_path: Path) -> None:
    model = loaded("nvila")
    image = picture(90, 40)
    image.save(tmp_path / "a.png")
    answers = {model.generate_content([part, "q"], SHORT, False) for part in (image, Image(tmp_path / "a.png"))}
    assert len(answers) == 1
    frames = [picture(30, 30, seed) for seed in range(4)]
    for name, frame in zip("abcd", frames, strict=True):
        (tmp_path / "film").mkdir(exist_ok=True)
        frame.save(tmp_path / "film" / f"{name}.png")
    answers = {model.generate_content([part, "q"], SHORT, False) for part in (Video(frames), Video(tmp_path / "film"))}
    assert len(answers) == 1
    texts = {model.generate_content(prompt, SHORT, False) for prompt in ("one two", ["one two"], ["one ", "two"])}
    assert len(texts) == 1
    for wrong in ([], [3.5], [None]):
        with pytest.raises(InputError):
            model.generate_content(wrong, SHORT)


def test_behaviour_37_a_media_token_in_the_text_is_text(loaded, caplog) -> None:
    model = loaded("nvila")
    with caplog.at_level(logging.WARNING):
        ids, media, _ = model.prepare_prompt("<image>\nDescribe this image in detail.")
    assert not media
    assert model.tokenizer.media_token_ids["image"] not in ids[0].tolist()
    assert "<image>" in caplog.text
    assert isinstance(model.generate_content("<image>\nDescribe.", SHORT), str)


def test_default_generation_config_is_a_completed_copy(loaded) -> None:
    model = loaded("nvila")
    config = model.default_generation_config
    assert config is not model.default_generation_config
    assert config is not model.llm.generation_config
    assert (config.max_length, config.pad_token_id) == (2048, model.tokenizer.pad_token_id)
    assert config.eos_token_id == list(model.tokenizer.stop_token_ids)
    assert config.bos_token_id == model.tokenizer.eos_token_id
    with pytest.raises(ConfigError, match="end-of-sequence"):
        complete_generation_config(None, SimpleNamespace(eos_token_id=None), ())


def test_several_pictures_are_not_tiled_and_one_is(loaded) -> None:
    for options in ({}, DYNAMIC):
        model = loaded("nvila", **options)
        _, media, config = model.prepare_prompt(PROMPTS["three"]())
        assert len(media["image"]) == 3
        assert config["image"].get("block_sizes") in (None, [None, None, None])
        _, media, config = model.prepare_prompt(PROMPTS["one"]())
        assert len(media["image"]) > 3
    model = loaded("nvila", extra={"tile_all": True})
    _, media, config = model.prepare_prompt([picture(90, 40), picture(40, 40), "q"])
    assert len(config["image"]["block_sizes"]) == 2
    assert isinstance(model.generate_content([picture(90, 40), picture(40, 40), "q"], SHORT), str)
