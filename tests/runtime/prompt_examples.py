"""Tokenizers of several kinds with a chat template each, as text for the library and as segments for the manifest."""

from __future__ import annotations

import dataclasses
import functools
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from runtime.bundle import Bundle, FileEntry, sha256_file
from runtime.bundle.manifest import ImagePlaceholder, PromptSection, Roles, RoleSegments
from runtime.prompt import PromptEncoder
from tests.runtime.bundle_example import example_manifest

ROOT = Path(__file__).resolve().parents[2]
CORPUS = [
    "USER: ASSISTANT: What is left of the red star? a large blue circle at the top right, yes no 1 2 3 4",
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nDescribe this image.<|im_end|>\n",
    "über Straße naïve 図形 красный {braces} [x] don't it's 12.5% \t tabs  and   spaces\n\nlines",
] * 3

LLAVA = Roles(
    RoleSegments("", " ", False), RoleSegments("USER: ", " ", False), RoleSegments("ASSISTANT: ", "</s>", False)
)
CHATML = Roles(
    *(RoleSegments(f"<|im_start|>{role}\n", "<|im_end|>\n", False) for role in ("system", "user", "assistant"))
)
LLAVA_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] + ' ' }}"
    "{% elif m['role'] == 'user' %}{{ 'USER: ' + m['content'] + ' ' }}"
    "{% else %}{{ 'ASSISTANT: ' + m['content'] + '</s>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
CHATML_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Example:
    """A tokenizer, its template, and the segments that say the same."""

    name: str
    tokenizer_json: str
    template: str
    section: PromptSection
    bos_token: str | None
    eos_token: str

    def bundle(self) -> Bundle:
        return _bundle(self)

    def encoder(self) -> PromptEncoder:
        return _encoder(self.name)

    def special_ids(self) -> set[int]:
        """Control tokens; the unknown token, which a model gives for characters that it lacks, is none."""
        return {token for text, token in self.section.special_tokens.items() if text != "<unk>"}


def _train(tokenizer: Tokenizer, trainer: Any) -> Tokenizer:
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def byte_level(specials: list[str]) -> Tokenizer:
    """As Qwen2's: byte-level BPE, special tokens behind the vocabulary."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    _train(tokenizer, trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False))
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in specials])
    return tokenizer


def byte_level_prefixed(specials: list[str]) -> Tokenizer:
    """As RoBERTa's: a space is put before every stretch of text."""
    tokenizer = byte_level(specials)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return tokenizer


def metaspace(specials: list[str]) -> Tokenizer:
    """As Llama's: Metaspace on the first word only, byte fallback, control strings in the vocabulary, its own BOS."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=520, special_tokens=[*specials, *byte_tokens], show_progress=False)
    _train(tokenizer, trainer)
    description = json.loads(tokenizer.to_str())
    description["added_tokens"] = [item for item in description["added_tokens"] if item["content"] in specials]
    tokenizer = Tokenizer.from_str(json.dumps(description))
    bos = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    return tokenizer


def unigram(specials: list[str]) -> Tokenizer:
    """As T5's: a model whose own vocabulary holds the special strings, so that it can spell them."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=150, special_tokens=[*specials, "<unk>"], unk_token="<unk>", show_progress=False
    )
    return _train(tokenizer, trainer)


def wordpiece(specials: list[str]) -> Tokenizer:
    """As BERT's, but split at white space alone, so that a special string can be a word."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=[*specials, "<unk>"], show_progress=False)
    return _train(tokenizer, trainer)


def _example(name: str, tokenizer: Tokenizer, roles: Roles, template: str, **section: Any) -> Example:
    added = tokenizer.get_added_tokens_decoder()
    special = {token.content: number for number, token in added.items() if token.special}
    eos = "<|im_end|>" if "<|im_end|>" in special else "</s>"
    bos = "<s>" if "<s>" in special else None
    values: dict[str, Any] = {
        "tokenizer": "tokenizer.json",
        "bos_ids": (),
        "prefix": bos or "",
        "default_system": None,
        "roles": roles,
        "generation_prompt": "ASSISTANT:",
        "stop_ids": (special[eos],),
        "special_tokens": special,
        "image": ImagePlaceholder("<image>", special["<image>"], (), (), "\n", "\n", "\n", False, "inline", ""),
        "context_tokens": 4096,
    }
    return Example(name, tokenizer.to_str(), template, PromptSection(**{**values, **section}), bos, eos)


@functools.cache
def examples() -> dict[str, Example]:
    """The five tokenizers by name."""
    chatml_specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>"]
    llava_specials = ["<s>", "</s>", "<image>"]
    system = {"default_system": "You are a helpful assistant.", "generation_prompt": "<|im_start|>assistant\n"}
    without_bos = LLAVA_TEMPLATE.replace("{{ bos_token }}", "")
    llama = metaspace(["<unk>", *llava_specials])
    bos = (llama.token_to_id("<s>"),)
    made = [
        _example("byte-level", byte_level(chatml_specials), CHATML, CHATML_TEMPLATE, **system),
        _example("byte-level prefixed", byte_level_prefixed(llava_specials), LLAVA, LLAVA_TEMPLATE),
        _example("metaspace", llama, LLAVA, without_bos, prefix="", bos_ids=bos),
        _example("unigram", unigram(llava_specials), LLAVA, LLAVA_TEMPLATE),
        _example("wordpiece", wordpiece(llava_specials), LLAVA, LLAVA_TEMPLATE),
    ]
    return {example.name: example for example in made}


NAMES = ("byte-level", "byte-level prefixed", "metaspace", "unigram", "wordpiece")
_folders: list[tempfile.TemporaryDirectory[str]] = []


def _bundle(example: Example) -> Bundle:
    folder = tempfile.TemporaryDirectory()
    _folders.append(folder)  # lives as long as the test run
    path = Path(folder.name)
    (path / "tokenizer.json").write_text(example.tokenizer_json, encoding="utf-8")
    entry = FileEntry((path / "tokenizer.json").stat().st_size, sha256_file(path / "tokenizer.json"))
    manifest = dataclasses.replace(
        example_manifest(), prompt=example.section, files={**example_manifest().files, "tokenizer.json": entry}
    )
    return Bundle(path, manifest)


@functools.cache
def _encoder(name: str) -> PromptEncoder:
    return PromptEncoder(examples()[name].bundle())
