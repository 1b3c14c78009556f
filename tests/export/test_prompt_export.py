"""The prompt group of a checkpoint: placeholder, control tokens, beginning and end tokens."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, processors

from export.checkpoint import read_checkpoint
from export.manifest_groups import context_tokens, prompt_request
from export.prompt_export import PromptExport, PromptRequest, export_prompt, image_token_text
from runtime.errors import ExportError
from tests.export.small_checkpoints import put, write_llava, write_nvila
from tests.runtime.prompt_examples import CHATML_TEMPLATE

pytest.importorskip("jinja2")


def request(root: Path, **changes: Any) -> PromptRequest:
    return dataclasses.replace(prompt_request(read_checkpoint(root), 128, None), **changes)


def edit_tokenizer(root: Path, change: Any) -> Tokenizer:
    path = next(root.rglob("tokenizer.json"))
    tokenizer = Tokenizer.from_str(path.read_text())
    change(tokenizer)
    path.write_text(tokenizer.to_str())
    return tokenizer


def test_family_conventions_reach_the_manifest(tmp_path: Path) -> None:
    llava = export_prompt(request(write_llava(tmp_path / "l")))
    assert (llava.section.prefix, llava.section.bos_ids) == ("<s>", ())
    assert (llava.section.image.token, llava.section.image.text_after) == ("<image>", "\n")
    assert set(llava.section.special_tokens) == {"<s>", "</s>", "<image>"}
    assert llava.section.stop_ids == (llava.section.special_tokens["</s>"],)
    assert llava.conversations == 50
    nvila = export_prompt(request(write_nvila(tmp_path / "n")))
    assert nvila.section.stop_ids == (nvila.section.special_tokens["<|im_end|>"],)
    assert (nvila.section.image.text_after, len(nvila.section.image.end_ids)) == ("", 1)
    tokenizer = Tokenizer.from_str(nvila.tokenizer_json.decode())
    assert tokenizer.decode(list(nvila.section.image.end_ids)) == "\n"


def test_tokenizer_file_is_kept_as_it_is(tmp_path: Path) -> None:
    root = write_llava(tmp_path / "l")
    assert export_prompt(request(root)).tokenizer_json == (root / "tokenizer.json").read_bytes()


def test_placeholder_that_the_tokenizer_lacks_is_added(tmp_path: Path) -> None:
    root = write_nvila(tmp_path / "n")
    result = export_prompt(request(root, image_token="<vila/image>"))
    tokenizer = Tokenizer.from_str(result.tokenizer_json.decode())
    assert tokenizer.token_to_id("<vila/image>") == result.section.image.token_id
    assert result.section.image.token_id >= Tokenizer.from_file(str(root / "llm" / "tokenizer.json")).get_vocab_size()
    assert "<vila/image>" in result.section.special_tokens


def test_placeholder_with_another_id_than_configured_is_refused(tmp_path: Path) -> None:
    root = write_llava(tmp_path / "l")
    with pytest.raises(ExportError, match=r"config\.json says 5"):
        export_prompt(request(root, image_token_id=5))
    assert image_token_text([root], read_checkpoint(root).prompt.image_token_id or 0) == "<image>"
    assert image_token_text([root], 10**6) is None


def test_token_that_the_tokenizer_puts_in_front_is_kept(tmp_path: Path) -> None:
    root = write_llava(tmp_path / "l")

    def add_bos(tokenizer: Tokenizer) -> None:
        bos = tokenizer.token_to_id("<s>")
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])

    tokenizer = edit_tokenizer(root, add_bos)
    assert export_prompt(request(root)).section.bos_ids == (), "the template wrote it"
    template = root / "chat_template.jinja"
    template.write_text(template.read_text().replace("{{ bos_token }}", ""))
    section = export_prompt(request(root)).section
    assert (section.bos_ids, section.prefix) == ((tokenizer.token_to_id("<s>"),), "")


def test_tokenizer_that_ends_every_text_is_refused(tmp_path: Path) -> None:
    root = write_llava(tmp_path / "l")

    def add_eos(tokenizer: Tokenizer) -> None:
        eos = tokenizer.token_to_id("</s>")
        tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", eos)])

    edit_tokenizer(root, add_eos)
    with pytest.raises(ExportError, match="only tokens before"):
        export_prompt(request(root))


def test_control_tokens_are_those_that_mean_something(tmp_path: Path) -> None:
    root = write_nvila(tmp_path / "n")

    def add(tokenizer: Tokenizer) -> None:
        plain = ("<tool_call>", "[INST]", "   ", "Jetson", "assistant")
        tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in plain])

    edit_tokenizer(root, add)
    special = export_prompt(request(root)).section.special_tokens
    assert {"<tool_call>", "[INST]", "assistant"} <= set(special), "like control tokens, or written by the template"
    assert not {"   ", "Jetson"} & set(special), "ordinary text of this tokenizer"


def test_end_tokens_come_from_every_place_that_names_them(tmp_path: Path) -> None:
    root = write_nvila(tmp_path / "n")
    put(root / "llm" / "generation_config.json", {"eos_token_id": [7, 9]})
    config = json.loads((root / "llm" / "config.json").read_text())
    put(root / "llm" / "config.json", config | {"eos_token_id": 11})
    names = json.loads((root / "llm" / "tokenizer_config.json").read_text())
    put(root / "llm" / "tokenizer_config.json", names | {"eos_token": {"content": "<|endoftext|>"}})
    section = export_prompt(request(root)).section
    expected = {7, 9, 11, section.special_tokens["<|endoftext|>"], section.special_tokens["<|im_end|>"]}
    assert set(section.stop_ids) == expected


def test_checkpoint_without_any_end_token_is_refused(tmp_path: Path) -> None:
    root = write_nvila(tmp_path / "n")
    put(root / "llm" / "tokenizer_config.json", {})
    put(root / "llm" / "chat_template.jinja", CHATML_TEMPLATE.replace("<|im_end|>", "~").replace("<|im_start|>", "~"))
    with pytest.raises(ExportError, match="no end token"):
        export_prompt(request(root))


@pytest.mark.parametrize("content", [None, "{", '{"model": {"type": "Magic"}}'])
def test_missing_or_damaged_tokenizer_is_refused(tmp_path: Path, content: str | None) -> None:
    root = write_llava(tmp_path / "l")
    asked = request(root)
    if content is None:
        (root / "tokenizer.json").unlink()
    else:
        (root / "tokenizer.json").write_text(content)
    with pytest.raises(ExportError, match=r"tokenizer\.json"):
        export_prompt(asked)


def test_template_that_writes_a_placeholder_of_its_own_is_refused(tmp_path: Path) -> None:
    root = write_llava(tmp_path / "l")
    template = root / "chat_template.jinja"
    template.write_text(template.read_text().replace("ASSISTANT:", "<image> ASSISTANT:"))
    with pytest.raises(ExportError, match="without an image"):
        export_prompt(request(root))


def test_reason_is_that_of_the_style_that_the_template_takes(tmp_path: Path) -> None:
    root = write_llava(tmp_path / "l")
    put(root / "chat_template.jinja", "{% for m in messages %}{{ m.role + ':' + m.content | upper }};{% endfor %}")
    with pytest.raises(ExportError, match="changes it"):
        export_prompt(request(root))


def test_context_is_the_smaller_of_decoder_and_tokenizer(tmp_path: Path) -> None:
    from export.decoder import open_decoder_checkpoint

    root = write_llava(tmp_path / "l")
    with open_decoder_checkpoint(root) as decoder:
        assert context_tokens(read_checkpoint(root), decoder.config) == 128
        put(root / "tokenizer_config.json", {"model_max_length": 10**30})
        assert context_tokens(read_checkpoint(root), decoder.config) == decoder.config.max_context
    assert PromptExport.__doc__
