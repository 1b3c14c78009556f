"""Answers written under a constraint by a model that says anything: tokens drawn at random among those allowed."""

from __future__ import annotations

import json
import random
from functools import lru_cache
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from runtime.constraint import Constraint
from tests.imports import ROOT

DEMO = (ROOT / "runtime/demo/demo-llava/tokenizer.json").read_text(encoding="utf-8")
DEMO_VOCAB = 512  # the demo's logits are wider than its 412 tokens
DEMO_STOP = (410,)


@lru_cache(maxsize=1)
def sentencepiece_json() -> str:
    """A tokenizer.json in the manner of Llama's: ▁ for the space, tokens for bytes."""
    pieces = [chr(value) for value in range(33, 127)] + ["▁", "▁a", "tr", "ue", '":', '{"', '"}', "▁the", "le", "fa"]
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2}
    for piece in [*(f"<0x{value:02X}>" for value in range(256)), *pieces]:
        vocab[piece] = len(vocab)
    added = [
        {"id": i, "content": c, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        | {"special": True}
        for c, i in (("<unk>", 0), ("<s>", 1), ("</s>", 2))
    ]
    merges = ["▁ a", "t r", "u e", '" :', '{ "', '" }', "l e", "f a"]
    model = {"type": "BPE", "vocab": vocab, "merges": merges, "byte_fallback": True, "unk_token": "<unk>"}
    steps = [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}]
    decoder = {"type": "Sequence", "decoders": [*steps, {"type": "Fuse"}]}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    text = {"version": "1.0", "added_tokens": added, "normalizer": replace, "pre_tokenizer": None}
    return json.dumps(text | {"post_processor": None, "decoder": decoder, "model": model})


@lru_cache(maxsize=4)
def tokenizer(text: str) -> Any:
    return Tokenizer.from_str(text)


def written(
    constraint: Constraint,
    budget: int,
    rng: random.Random,
    *,
    text: str = DEMO,
    vocab: int = DEMO_VOCAB,
    stop: tuple[int, ...] = DEMO_STOP,
    follow_forced: float = 0.5,
    end: float = 0.5,
) -> tuple[str, list[int], int]:
    """(text, tokens, refusals). ``end``: how often a model that may end does; ``follow_forced``: likewise."""
    matcher = constraint.matcher(text, vocab, stop, budget)
    tokens: list[int] = []
    refusals = 0
    while not matcher.done:
        forced = matcher.forced()
        if forced and rng.random() < follow_forced:
            for token in forced:
                assert matcher.allowed().any()
                assert matcher.push(token), "a forced token was refused"
            tokens += forced
            continue
        for tries in range(200):
            allowed = matcher.allowed()
            assert allowed.shape == (vocab,)
            choices = np.flatnonzero(allowed).tolist()
            ends = [token for token in choices if token in stop]
            token = ends[0] if ends and rng.random() < end else rng.choice(choices)
            if matcher.push(token):
                break
            refusals += 1
            assert tries < 20, "it refuses for ever"
            assert not matcher.allowed()[token], "a refused token is allowed still"
        if token in stop:
            break
        tokens.append(token)
        assert len(tokens) <= budget
    return tokenizer(text).decode(tokens, skip_special_tokens=False), tokens, refusals


def needed(constraint: Constraint, **kind: Any) -> int:
    """The smallest budget that is not refused, as the refusal of one token names it."""
    from runtime.errors import InputError

    try:
        constraint.matcher(kind.get("text", DEMO), kind.get("vocab", DEMO_VOCAB), kind.get("stop", DEMO_STOP), 0)
    except InputError as refusal:
        return int(refusal.message.split("at least ")[1].split()[0])
    return 0
