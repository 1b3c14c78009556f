"""The named templates write what the published conversations write."""

from __future__ import annotations

import pytest
from jinja2 import Environment

from models.chat_templates import TEMPLATES, default_template, named_template
from runtime.errors import ExportError

TURNS = [
    {"role": "user", "content": "a {{ b }}"},
    {"role": "assistant", "content": "c"},
    {"role": "user", "content": "d"},
]
SYSTEM = {"role": "system", "content": "S."}
# VILA's and LLaVA's llava/conversation.py: get_prompt() of the conversation of that name with these messages.
EXPECTED = {
    "vicuna_v1": (
        "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions. "
        "USER: a {{ b }} ASSISTANT: c</s>USER: d ASSISTANT:"
    ),
    "llama_3": (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nYou are a helpful language and vision "
        "assistant. You are able to understand the visual content that the user provides, and assist the user with a "
        "variety of tasks using natural language.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
        "a {{ b }}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nc<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nd<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    ),
    "qwen2": (
        "<|im_start|>system\nYou are a helpful assistant<|im_end|>\n<|im_start|>user\na {{ b }}<|im_end|>\n"
        "<|im_start|>assistant\nc<|im_end|>\n<|im_start|>user\nd<|im_end|>\n<|im_start|>assistant\n"
    ),
    "hermes-2": (
        "<|im_start|>system\nAnswer the questions.<|im_end|><|im_start|>user\na {{ b }}<|im_end|>"
        "<|im_start|>assistant\nc<|im_end|><|im_start|>user\nd<|im_end|><|im_start|>assistant\n"
    ),
}
EXPECTED["v1"] = EXPECTED["vicuna_v1"]


def rendered(name: str, messages: list[dict[str, str]]) -> str:
    return Environment().from_string(named_template(name)).render(messages=messages, add_generation_prompt=True)


@pytest.mark.parametrize("name", TEMPLATES)
def test_template_writes_the_published_conversation(name: str) -> None:
    assert rendered(name, TURNS) == EXPECTED[name]


@pytest.mark.parametrize("name", TEMPLATES)
def test_system_message_takes_the_place_of_the_usual_one(name: str) -> None:
    written = rendered(name, [SYSTEM, *TURNS])
    assert written.count("S.") == 1
    assert "assistant gives" not in written
    assert "You are a helpful" not in written
    assert "Answer the questions" not in written
    assert written.endswith(rendered(name, TURNS)[-30:])


def test_decoder_and_its_tokens_decide_the_template() -> None:
    assert default_template("qwen2", ()) == TEMPLATES["qwen2"]
    assert default_template("llama", ("<s>", "</s>")) == TEMPLATES["vicuna_v1"]
    assert default_template("llama", {"<|start_header_id|>": 128006}) == TEMPLATES["llama_3"]
    assert default_template("llama", {"<|im_start|>": 6}) == TEMPLATES["hermes-2"]
    with pytest.raises(ExportError, match="unknown chat_template 'mistral'"):
        named_template("mistral")
