"""Messages to token ids: what transformers gives for ordinary text, and never a special token from a user's words."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.bundle import Bundle
from runtime.bundle.manifest import PromptSection, RoleSegments
from runtime.errors import PromptError
from runtime.prompt import EncodedPrompt, ImagePart, Message, PromptEncoder, render
from runtime.tiling import TilingSpec, layout_for
from tests.runtime.prompt_examples import NAMES, Example, examples

ORDINARY = st.text(
    st.characters(codec="utf-8", exclude_characters="<>", exclude_categories=("Cs", "Cn", "Co")), max_size=30
)
TRICKS = (
    "<s>",
    "</s>",
    "<image>",
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<unk>",
    "<",
    ">",
    "<|",
    "|>",
    "/s>",
    "im_",
)
INJECTION = st.lists(
    st.sampled_from([*TRICKS, "user\n", "ASSISTANT:", " ", "\n", "{{ x }}", "é", "図"]), max_size=8
).map("".join)


def conversation(user: str, answer: str = "", again: str = "", system: str = "") -> list[Message]:
    messages = [Message("system", (system,))] if system else []
    messages.append(Message("user", (user,)))
    if answer or again:
        messages += [Message("assistant", (answer,)), Message("user", (again,))]
    return messages


@functools.cache
def library_tokenizer(name: str) -> Any:
    transformers = pytest.importorskip("transformers")
    example = examples()[name]
    from tokenizers import Tokenizer

    special: dict[str, str] = {"eos_token": example.eos_token}
    if example.bos_token:
        special["bos_token"] = example.bos_token
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(example.tokenizer_json), clean_up_tokenization_spaces=False, **special
    )
    tokenizer.chat_template = example.template
    return tokenizer


def library_ids(name: str, messages: Sequence[Message]) -> list[int]:
    """What transformers gives: its own template engine, then its own call, as its processors do it."""
    tokenizer = library_tokenizer(name)
    plain = [{"role": message.role, "content": "".join(map(str, message.parts))} for message in messages]
    text = tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=True)
    starts = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
    ids: list[int] = tokenizer(text, add_special_tokens=not starts)["input_ids"]
    return ids


@pytest.mark.torch
@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25)
@given(user=ORDINARY, answer=ORDINARY, again=ORDINARY, system=ORDINARY)
def test_ids_equal_those_of_transformers(name: str, user: str, answer: str, again: str, system: str) -> None:
    messages = conversation(user, answer, again, system)
    assert examples()[name].encoder().encode(messages).token_ids.tolist() == library_ids(name, messages)


@pytest.mark.torch
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "user",
    [
        "What is left of it?",
        " padded \n",
        "",
        "a < b > c",
        "{braces} {{ and }} {% code %}",
        "図形 über 🟥",
        "</",
        "\t\t",
    ],
)
def test_ids_of_chosen_texts_equal_those_of_transformers(name: str, user: str) -> None:
    for messages in (
        conversation(user),
        conversation(user, "a red star", user),
        conversation(user, system=user or "s"),
    ):
        assert examples()[name].encoder().encode(messages).token_ids.tolist() == library_ids(name, messages)


def special_of_template(example: Example, messages: Sequence[Message]) -> list[int]:
    """The special tokens that the template itself writes around messages of harmless words."""
    harmless = [Message(message.role, ("word",)) for message in messages]
    ids = example.encoder().encode(harmless).token_ids.tolist()
    return [token for token in ids if token in example.special_ids()]


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40)
@given(user=INJECTION, answer=INJECTION, again=INJECTION)
def test_words_never_become_special_tokens(name: str, user: str, answer: str, again: str) -> None:
    example = examples()[name]
    messages = conversation(user, answer, again)
    ids = example.encoder().encode(messages).token_ids.tolist()
    found = [token for token in ids if token in example.special_ids()]
    assert found == special_of_template(example, messages)


@settings(max_examples=40)
@given(user=INJECTION)
def test_words_behind_images_never_become_special_tokens(user: str) -> None:
    example = examples()["byte-level"]
    encoder = encoder_with(example, image_placement="first", default_system=None)
    ids = encoder.encode([Message("user", (ImagePart(0), user))], [2]).token_ids.tolist()
    names = ("<|im_start|>", "<image>", "<image>", "<|im_end|>", "<|im_start|>")
    expected = [example.section.special_tokens[name] for name in names]
    assert [token for token in ids if token in example.special_ids()] == expected


@pytest.mark.parametrize("name", ["byte-level", "byte-level prefixed", "metaspace"])
@settings(max_examples=25)
@given(user=INJECTION)
def test_special_strings_stay_readable_text(name: str, user: str) -> None:
    encoder = examples()[name].encoder()
    ids = encoder.encode(conversation(user)).token_ids.tolist()
    inner = encoder.tokenizer.decode(ids, skip_special_tokens=False)
    assert user in inner


def test_special_token_cannot_be_formed_with_the_templates_text() -> None:
    example = examples()["byte-level"]
    roles = dataclasses.replace(example.section.roles, user=RoleSegments("<|im_start|>user\n<", "im_end|>\n", False))
    encoder = encoder_with(example, roles=roles)
    ids = encoder.encode(conversation("|")).token_ids.tolist()
    assert example.section.special_tokens["<|im_end|>"] in ids, "the default system message's own end"
    assert ids.count(example.section.special_tokens["<|im_end|>"]) == 1
    assert ids == encoder.encode(conversation("|")).token_ids.tolist()


def encoder_with(example: Example, tile_all: bool = False, **changes: Any) -> PromptEncoder:
    """An encoder whose prompt section differs; ``image_...`` change the placeholder."""
    image = {key.removeprefix("image_"): value for key, value in changes.items() if key.startswith("image_")}
    plain = {key: value for key, value in changes.items() if not key.startswith("image_")}
    section: PromptSection = dataclasses.replace(
        example.section, image=dataclasses.replace(example.section.image, **image), **plain
    )
    bundle = example.bundle()
    vision = bundle.manifest.vision
    vision = dataclasses.replace(vision, tiling=dataclasses.replace(vision.tiling, tile_all=tile_all))
    return PromptEncoder(Bundle(bundle.path, dataclasses.replace(bundle.manifest, prompt=section, vision=vision)))


def texts(encoder: PromptEncoder, encoded: EncodedPrompt, image_id: int) -> str:
    """The prompt as text, each run of placeholders as [n]."""
    parts, ids = [], encoded.token_ids.tolist()
    at = 0
    for block in encoded.image_slices:
        parts.append(encoder.tokenizer.decode(ids[at : block.start], skip_special_tokens=False))
        assert all(token == image_id for token in ids[block.start : block.stop])
        parts.append(f"[{block.stop - block.start}]")
        at = block.stop
    assert image_id not in ids[at:]
    return "".join([*parts, encoder.tokenizer.decode(ids[at:], skip_special_tokens=False)])


def test_image_takes_as_many_places_as_it_has_embeddings() -> None:
    example = examples()["byte-level"]
    encoder = encoder_with(example, default_system=None)
    encoded = encoder.encode([Message("user", (ImagePart(0), "What?"))], [5])
    assert texts(encoder, encoded, example.section.image.token_id) == (
        "<|im_start|>user\n[5]\nWhat?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert encoded.num_image_tokens == 5
    assert encoded.image_indices == (0,)


def test_begin_and_end_ids_stand_around_each_image_and_are_no_places() -> None:
    example = examples()["byte-level"]
    newline = example.encoder().tokenizer.token_to_id("Ċ")
    encoder = encoder_with(
        example, image_begin_ids=(7,), image_end_ids=(newline,), image_text_after="", default_system=None
    )
    encoded = encoder.encode([Message("user", (ImagePart(0), ImagePart(1), "?"))], [2, 3])
    first, second = encoded.image_slices
    ids = encoded.token_ids
    assert [stop - start for start, stop in ((first.start, first.stop), (second.start, second.stop))] == [2, 3]
    assert ids[first.start - 1] == ids[second.start - 1] == 7
    assert ids[first.stop] == ids[second.stop] == newline


def test_images_stand_where_the_message_has_them_or_before_its_words() -> None:
    example = examples()["byte-level"]
    message = Message("user", ("first", ImagePart(1), "second", ImagePart(0)))
    inline = encoder_with(example, image_text_after="", default_system=None)
    encoded = inline.encode([message], [2, 3])
    assert "user\nfirst[3]second[2]<|im_end|>" in texts(inline, encoded, example.section.image.token_id)
    assert encoded.image_indices == (1, 0)
    first = encoder_with(example, image_placement="first", image_text_joint=" ", default_system=None)
    shown = texts(first, first.encode([message], [2, 3]), example.section.image.token_id)
    assert "user\n[3]\n[2]\nfirst second<|im_end|>" in shown


TILED = TilingSpec("dynamic", 32, 2, 1, 6, True)


def test_tiles_stand_one_by_one_where_the_family_writes_them_so() -> None:
    example = examples()["byte-level"]
    encoder = encoder_with(example, image_each_tile=True, image_text_after_untiled="", default_system=None)
    wide = layout_for(32, 96, TILED)
    assert wide.num_tiles == 4
    encoded = encoder.encode([Message("user", (ImagePart(0), "?"))], [wide])
    assert "user\n[4]\n[4]\n[4]\n[4]\n?" in texts(encoder, encoded, example.section.image.token_id)
    assert encoded.image_indices == (0, 0, 0, 0)


def test_several_pictures_of_that_family_are_not_tiled() -> None:
    example = examples()["byte-level"]
    question = [Message("user", (ImagePart(0), ImagePart(1), "?"))]
    encoder = encoder_with(example, image_each_tile=True, image_text_after_untiled="", default_system=None)
    assert "user\n[4][4]?" in texts(encoder, encoder.encode(question, [4, 4]), example.section.image.token_id)
    tiled = encoder_with(example, tile_all=True, image_each_tile=True, default_system=None)
    wide = layout_for(32, 64, TILED)
    shown = texts(tiled, tiled.encode(question, [wide, wide]), example.section.image.token_id)
    assert "user\n" + "[4]\n" * 6 + "?" in shown


def test_embeddings_are_split_over_their_places() -> None:
    encoded = EncodedPrompt(np.zeros(9, np.int64), (slice(0, 2), slice(3, 4), slice(5, 7)), (0, 1, 0))
    first, second = np.arange(8, dtype=np.float32).reshape(4, 2), np.ones((1, 2), np.float32)
    blocks = encoded.split_embeds([first, second])
    assert [len(block) for block in blocks] == [2, 1, 2]
    assert np.array_equal(blocks[2], first[2:])
    for wrong in ([first], [first, second, second], [first[:3], second], [first, first]):
        with pytest.raises(PromptError):
            encoded.split_embeds(wrong)


@pytest.mark.parametrize(
    ("parts", "images"),
    [
        (("?",), [1]),
        ((ImagePart(0), "?"), []),
        ((ImagePart(1), "?"), [1]),
        ((ImagePart(0), ImagePart(0)), [1]),
        ((ImagePart(-1),), [1]),
    ],
)
def test_images_that_do_not_match_their_places_are_refused(parts: tuple[Any, ...], images: list[int]) -> None:
    with pytest.raises(PromptError, match="image"):
        examples()["byte-level"].encoder().encode([Message("user", parts)], images)


@pytest.mark.parametrize(
    "roles", [[], ["system"], ["assistant"], ["user", "user"], ["user", "assistant"], ["user", "system", "user"]]
)
def test_roles_out_of_order_are_refused(roles: list[Any]) -> None:
    with pytest.raises(PromptError, match="roles"):
        examples()["byte-level"].encoder().encode([Message(role, ("x",)) for role in roles])


def test_system_message_needs_a_template_that_has_one() -> None:
    example = examples()["unigram"]
    encoder = encoder_with(example, roles=dataclasses.replace(example.section.roles, system=None))
    with pytest.raises(PromptError, match="system"):
        encoder.encode(conversation("x", system="be brief"))


def test_image_of_an_assistant_is_refused() -> None:
    messages = [Message("user", ("a",)), Message("assistant", (ImagePart(0),)), Message("user", ("b",))]
    with pytest.raises(PromptError, match="only the user"):
        examples()["byte-level"].encoder().encode(messages, [1])


@pytest.mark.parametrize("text", ["\ud800", "x" * (1 << 20)])
def test_text_that_cannot_be_encoded_is_refused(text: str) -> None:
    with pytest.raises(PromptError):
        examples()["byte-level"].encoder().encode(conversation(text))


def test_trimmed_role_loses_white_space_around_its_words_alone() -> None:
    example = examples()["byte-level"]
    section = dataclasses.replace(
        example.section,
        roles=dataclasses.replace(
            example.section.roles, user=RoleSegments("<|im_start|>user\n ", " <|im_end|>\n", True)
        ),
        default_system=None,
    )
    message = Message("user", (" \n", "  a b ", ImagePart(0), "\t", " "))
    text = "".join(piece.text for piece in render(section, [message], {}))
    assert text == "<|im_start|>user\n a b <image> <|im_end|>\n<|im_start|>assistant\n"


def test_encoder_tells_its_end_tokens_and_placeholder() -> None:
    encoder = examples()["byte-level"].encoder()
    section = examples()["byte-level"].section
    assert encoder.stop_ids == {section.special_tokens["<|im_end|>"]}
    assert encoder.placeholder_id == section.special_tokens["<image>"]
