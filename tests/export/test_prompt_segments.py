"""Segments reproduce a template on conversations that were not used to derive them, or the template is refused."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from typing import Any

import pytest

from export.chat_template import Refusal, render_template
from export.prompt_segments import (
    PROOF_CONVERSATIONS,
    Segments,
    Style,
    TemplateProbe,
    as_template_messages,
    derive_image,
    derive_segments,
    prove,
    random_conversations,
)
from models.chat_templates import TEMPLATES
from runtime.bundle.manifest import ImagePlaceholder, PromptSection, Roles, RoleSegments
from runtime.errors import ExportError
from runtime.prompt import ImagePart, Message
from tests.runtime.bundle_example import example_manifest

pytest.importorskip("jinja2")

NAMES = {"bos_token": "<s>", "eos_token": "</s>"}
IMAGE = ImagePlaceholder("<image>", 9, (), (), "", "", "", False, "inline", "")
LLAVA_15 = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
    "{# Render all images first #}{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}{# Render all text next #}{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] + ' '}}{% endfor %}"
    "{% else %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ content['text'] + ' '}}{% endgeneration %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
QWEN2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA_3 = (
    "{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    " + message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}"
    "{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}{% set messages = messages[1:] %}"
    "{% else %}{% set system = '' %}{% endif %}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + (('<<SYS>>\n' + system + '\n<</SYS>>\n\n') if loop.index0 == 0 and system else '') }}"
    "{{ m['content'] | trim + ' [/INST]' }}{% else %}{{ ' ' + m['content'] | trim + ' ' + eos_token }}{% endif %}"
    "{% endfor %}"
)
INLINE = (
    "{% for m in messages %}[{{ m.role }}]{% for c in m.content %}"
    "{% if c.type == 'image' %}<image>{% else %}{{ c.text }}{% endif %}{% endfor %}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def probe(template: str, style: Style) -> TemplateProbe:
    def render_all(conversations: Sequence[dict[str, Any]]) -> list[str | Refusal]:
        return render_template(template, NAMES, conversations)

    return TemplateProbe(render_all, style, lambda index: "<image>")


def proved(template: str, style: Style) -> tuple[PromptSection, int]:
    asked = probe(template, style)
    segments = derive_segments(asked)
    image = derive_image(asked, segments, IMAGE) if style == "parts" else IMAGE
    section = section_of(segments, image)
    return section, prove(section, asked, {})


def section_of(segments: Segments, image: ImagePlaceholder) -> PromptSection:
    return dataclasses.replace(example_manifest().prompt, image=image, **vars_of(segments))


def vars_of(segments: Segments) -> dict[str, Any]:
    return {field.name: getattr(segments, field.name) for field in dataclasses.fields(segments)}


def test_llava_template_becomes_its_segments() -> None:
    section, count = proved(LLAVA_15, "parts")
    assert count == PROOF_CONVERSATIONS == 50
    assert section.prefix == ""
    assert section.default_system is None
    assert section.roles == Roles(
        RoleSegments("", " ", False), RoleSegments("USER: ", " ", False), RoleSegments("ASSISTANT: ", " ", False)
    )
    assert section.generation_prompt == "ASSISTANT:"
    assert (section.image.placement, section.image.text_after, section.image.text_joint) == ("first", "\n", " ")


def test_chatml_template_becomes_its_segments() -> None:
    section, _ = proved(QWEN2, "string")
    assert section.default_system == "You are a helpful assistant"
    assert section.roles.system == RoleSegments("<|im_start|>system\n", "<|im_end|>\n", False)
    assert section.roles.user == RoleSegments("<|im_start|>user\n", "<|im_end|>\n", False)
    assert section.generation_prompt == "<|im_start|>assistant\n"


def test_template_that_trims_keeps_trimming() -> None:
    section, _ = proved(LLAMA_3, "string")
    assert section.prefix == "<s>"
    assert section.roles.user.trim
    assert section.roles.assistant.trim
    assert section.roles.system is not None and section.roles.system.trim


def test_system_message_that_is_no_segment_is_left_out() -> None:
    section, _ = proved(LLAMA_2, "string")
    assert section.roles.system is None
    assert (section.roles.user.open, section.roles.user.close) == ("<s>[INST] ", " [/INST]")


def test_images_stay_inside_the_words_where_the_template_has_them() -> None:
    section, _ = proved(INLINE, "parts")
    assert (section.image.placement, section.image.text_after) == ("inline", "")


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for m in messages %}{{ loop.index }}{{ m.role }}:{{ m.content }};{% endfor %}", "depends on its place"),
        ("{% for m in messages %}{{ m.role }}:{{ m.content | lower }};{% endfor %}", "changes it"),
        ("{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}", "2 times"),
        ("{% for m in messages %}{{ m.role }}:{{ m.content | replace('{', '(') }};{% endfor %}", "at character"),
        ("{% for m in messages %}{{ m.role }}:{{ m.content | e }};{% endfor %}", "at character"),
        ("{% for m in messages %}{{ m.role }}:{{ m.content }}{{ '!' if 'star' in m.content }};{% endfor %}", "at char"),
        (
            "{% for m in messages %}{{ '~' if messages | length > 4 }}{{ m.role }}:{{ m.content }};{% endfor %}",
            "at char",
        ),
        ("{{ raise_exception('no') }}", "refuses a plain conversation"),
        ("nothing", "0 times"),
    ],
)
def test_template_that_is_no_list_of_segments_is_refused_by_its_difference(template: str, reason: str) -> None:
    with pytest.raises(ExportError, match=reason):
        proved(template, "string")


def test_template_that_writes_something_else_for_an_image_is_refused() -> None:
    with pytest.raises(ExportError, match="picture"):
        proved(INLINE.replace("<image>", "<picture>"), "parts")


def test_segments_that_differ_in_one_letter_are_found() -> None:
    section, _ = proved(QWEN2, "string")
    wrong = dataclasses.replace(section, generation_prompt="<|im_start|>Assistant\n")
    with pytest.raises(ExportError, match="'.*assistant.*', the segments '.*Assistant"):
        prove(wrong, probe(QWEN2, "string"), {})


def test_proof_covers_turns_systems_images_and_white_space() -> None:
    conversations = random_conversations(50, random.Random(20), system=True)
    lengths = {sum(message.role == "user" for message in messages) for messages in conversations}
    texts = ["".join(part for part in m.parts if isinstance(part, str)) for ms in conversations for m in ms]
    images = [sum(isinstance(part, ImagePart) for m in ms for part in m.parts) for ms in conversations]
    assert lengths == {1, 2, 3, 4}
    assert {0, 1, 2, 3} == set(images)
    assert any(messages[0].role == "system" for messages in conversations)
    assert any(text != text.strip() for text in texts)
    assert any("{{" in text for text in texts)


def test_messages_are_written_in_both_styles() -> None:
    message = Message("user", ("a", "b", ImagePart(0), "c"))
    (parts,) = as_template_messages([message], "parts", lambda index: "<image>\n")
    assert [item["type"] for item in parts["content"]] == ["text", "image", "text"]
    assert parts["content"][0]["text"] == "ab"
    (string,) = as_template_messages([message], "string", lambda index: f"<{index}>")
    assert string == {"role": "user", "content": "ab<0>c"}


@pytest.mark.torch
@pytest.mark.parametrize("template", [QWEN2, LLAMA_3, LLAMA_2])
def test_segments_reproduce_what_transformers_renders(template: str) -> None:
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    from runtime.prompt import render

    section, _ = proved(template, "string")
    for messages in random_conversations(20, random.Random(7), system=section.roles.system is not None):
        plain = as_template_messages(messages, "string", lambda index: "<image>")
        (text,), _ = utils.render_jinja_template([plain], chat_template=template, add_generation_prompt=True, **NAMES)
        assert "".join(piece.text for piece in render(section, messages, {})) == text


@pytest.mark.parametrize("name", TEMPLATES)
def test_named_templates_are_segments_with_a_system_message(name: str) -> None:
    """What a checkpoint without a template is given: the usual system text gives way to the user's."""
    section, conversations = proved(TEMPLATES[name], "string")
    assert conversations == PROOF_CONVERSATIONS
    assert section.roles.system is not None
    assert section.default_system is not None
    assert section.default_system not in section.prefix
