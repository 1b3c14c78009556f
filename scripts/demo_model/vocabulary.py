"""Tokenizers and chat templates of the two demo models.

Both are byte-level BPE over the words of the grammar (every other text still works, byte by byte). `demo-llava` has
LLaVA-1.5's "USER: <image>\\nQ ASSISTANT: A</s>", `demo-nvila` Qwen2's ChatML with its default system message.
"""

from __future__ import annotations

from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from runtime.sources.scenes import sample_scene
from scripts.demo_model.pictures import Family, generator
from scripts.demo_model.questions import ask_all

VOCABULARY = 512  # rows of the embedding table; fewer tokens are in use
IMAGE = "<image>"
SPECIALS: dict[Family, tuple[str, ...]] = {
    "demo-llava": ("<pad>", "<s>", "</s>", IMAGE),
    "demo-nvila": ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<vila/sentinel>", IMAGE, "<vila/video>"),
}
BOS: dict[Family, str | None] = {"demo-llava": "<s>", "demo-nvila": None}
EOS: dict[Family, str] = {"demo-llava": "</s>", "demo-nvila": "<|im_end|>"}
PAD: dict[Family, str] = {"demo-llava": "<pad>", "demo-nvila": "<|endoftext|>"}

_TEXT = (
    "{%- macro text(content) -%}{%- if content is string -%}{{ content }}{%- else -%}"
    "{%- for part in content if part['type'] == 'image' -%}{{ '<image>\\n' }}{%- endfor -%}"
    "{%- for part in content if part['type'] == 'text' -%}{{ part['text'] }}{%- endfor -%}"
    "{%- endif -%}{%- endmacro -%}\n"
)
TEMPLATES: dict[Family, str] = {
    "demo-llava": _TEXT
    + (
        "{%- for message in messages -%}"
        "{%- if message['role'] == 'system' -%}{{ text(message['content']) + ' ' }}"
        "{%- elif message['role'] == 'assistant' -%}{{ ' ' + text(message['content']) + eos_token }}"
        "{%- else -%}{{ 'USER: ' + text(message['content']) + ' ASSISTANT:' }}{%- endif -%}"
        "{%- endfor -%}"
    ),
    "demo-nvila": _TEXT
    + (
        "{%- if messages[0]['role'] != 'system' -%}"
        "{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{%- endif -%}"
        "{%- for message in messages -%}"
        "{{ '<|im_start|>' + message['role'] + '\\n' + text(message['content']) + '<|im_end|>\\n' }}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
    ),
}
CLASSES: dict[Family, str] = {"demo-llava": "PreTrainedTokenizerFast", "demo-nvila": "Qwen2Tokenizer"}
_QWEN2_WORDS = (  # how Qwen2 splits text before BPE; the grammar's words come out the same either way
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_FRAMES: dict[Family, str] = {
    "demo-llava": "USER: ASSISTANT:",
    "demo-nvila": "system\nYou are a helpful assistant.\nuser\nassistant\n",
}


def build_tokenizer(family: Family) -> PreTrainedTokenizerFast:
    """The family's tokenizer, always the same: trained on questions and answers about 3,000 scenes."""
    rng = generator("tokenizer", 0)
    corpus = [_FRAMES[family]] * 500
    for _ in range(3000):
        scene = sample_scene(rng)
        for _, question, answer in ask_all(scene, rng):
            corpus.append(f"\n{question} ASSISTANT: {answer}" if family == "demo-llava" else f"\n{question}\n{answer}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 8,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        max_token_length=16,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIALS[family]])
    if family == "demo-nvila":
        words = pre_tokenizers.Split(Regex(_QWEN2_WORDS), behavior="isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
        tokenizer.normalizer = normalizers.NFC()
    else:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
        )
    return _wrap(tokenizer, family)


def _wrap(tokenizer: Tokenizer, family: Family) -> PreTrainedTokenizerFast:
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS[family],
        eos_token=EOS[family],
        pad_token=PAD[family],
        additional_special_tokens=[t for t in SPECIALS[family] if t not in (BOS[family], EOS[family], PAD[family])],
        model_max_length=512,
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = TEMPLATES[family]
    return wrapped


def load_tokenizer(directory: Path) -> PreTrainedTokenizerFast:
    """The tokenizer saved in `directory`."""
    return PreTrainedTokenizerFast.from_pretrained(directory)
