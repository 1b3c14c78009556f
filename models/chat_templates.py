"""Chat templates of checkpoints whose tokenizer brings none, by the names that published code gives them.

Plain texts for Jinja; no imports, so that the exporter reads them without torch.
"""

from __future__ import annotations

from collections.abc import Container

from runtime.errors import ExportError

QWEN2 = (
    "{%- if messages[0]['role'] != 'system' -%}"
    "{{ '<|im_start|>system\\nYou are a helpful assistant<|im_end|>\\n' }}{%- endif -%}"
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)
# LLaVA-1.5 and VILA-1.5 on Vicuna were trained on this one.
VICUNA_V1 = (
    "{%- if messages[0]['role'] != 'system' -%}"
    '{{ "A chat between a curious user and an artificial intelligence assistant. '
    "The assistant gives helpful, detailed, and polite answers to the user's questions. \" }}{%- endif -%}"
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'system' -%}{{ message['content'] + ' ' }}"
    "{%- elif message['role'] == 'user' -%}{{ 'USER: ' + message['content'] + ' ' }}"
    "{%- else -%}{{ 'ASSISTANT: ' + message['content'] + '</s>' }}{%- endif -%}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{ 'ASSISTANT:' }}{%- endif -%}"
)
# VILA-1.5 on Llama 3; "<|begin_of_text|>" stands in the text.
LLAMA_3 = (
    "{{ '<|begin_of_text|>' }}"
    "{%- if messages[0]['role'] != 'system' -%}"
    "{{ '<|start_header_id|>system<|end_header_id|>\\n\\nYou are a helpful language and vision assistant. "
    "You are able to understand the visual content that the user provides, "
    "and assist the user with a variety of tasks using natural language.<|eot_id|>' }}{%- endif -%}"
    "{%- for message in messages -%}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' "
    "+ message['content'] + '<|eot_id|>' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif -%}"
)
# VILA1.5-40B.
HERMES_2 = (
    "{%- if messages[0]['role'] != 'system' -%}"
    "{{ '<|im_start|>system\\nAnswer the questions.<|im_end|>' }}{%- endif -%}"
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)
TEMPLATES = {"qwen2": QWEN2, "vicuna_v1": VICUNA_V1, "v1": VICUNA_V1, "llama_3": LLAMA_3, "hermes-2": HERMES_2}
_LLAMA_3_TOKEN, _HERMES_2_TOKEN = "<|start_header_id|>", "<|im_start|>"


def named_template(name: str) -> str:
    """The chat template that a configuration calls ``name``. Raises ExportError for an unknown one."""
    if name not in TEMPLATES:
        raise ExportError(f"unknown chat_template {name!r}", hint="one of " + ", ".join(TEMPLATES))
    return TEMPLATES[name]


def default_template(decoder: str, tokens: Container[str]) -> str:
    """What a decoder of the type ``decoder`` ("llama", "qwen2") was trained on where its tokenizer brings no template.

    ``tokens``: those added to its tokenizer; Llama 3's headers and Hermes's marks among them tell these
    from Vicuna.
    """
    if decoder != "llama":
        return QWEN2
    if _LLAMA_3_TOKEN in tokens:
        return LLAMA_3
    return HERMES_2 if _HERMES_2_TOKEN in tokens else VICUNA_V1
