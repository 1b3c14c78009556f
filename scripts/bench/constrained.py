"""What a constrained token costs: mask, choice's push and the budget's bookkeeping, in milliseconds.

    python scripts/bench/constrained.py --out scripts/bench/results/constrained.jsonl

The vocabulary is synthetic: byte-level BPE with the 151,936 tokens of Qwen2's logits, trained here on the Python files
of the standard library and of the installed packages, since Qwen's own is no part of any of them. Tokens are drawn at
random among those allowed, which is harder on the planner than a model is. One row per form and budget.
"""

from __future__ import annotations

import argparse
import random
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from runtime.constraint import Constraint
from runtime.constraints import choice, json_object, json_schema
from scripts.bench.record import environment, write_line

VOCAB = 151_936
MAX_CHARS = 60_000_000
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

YES_NO = ["yes", "no"]
SCENE: dict[str, Any] = {
    "type": "object",
    "properties": {
        "person": {"type": "boolean"},
        "count": {"type": "integer", "minimum": 0, "maximum": 50},
        "what": {"type": "string"},
        "vehicles": {"type": "array", "items": {"enum": ["car", "bus", "truck", "bicycle"]}, "maxItems": 8},
    },
    "required": ["person", "count", "what", "vehicles"],
    "additionalProperties": False,
}
DETECTIONS: dict[str, Any] = {
    "type": "object",
    "properties": {
        "objects": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "properties": {
                    "label": {"type": "string", "maxLength": 24},
                    "colour": {"enum": ["red", "green", "blue", "white", "black", "other"]},
                    "box": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 1000}, "minItems": 4,
                            "maxItems": 4},
                    "plate": {"anyOf": [{"type": "string", "pattern": "^[A-Z]{1,3}-[0-9]{1,4}$"}, {"type": "null"}]},
                },
                "required": ["label", "colour", "box", "plate"],
            },
        }
    },
    "required": ["objects"],
}  # fmt: skip


def texts(limit: int) -> Iterator[str]:
    """Python files of this interpreter, at most ``limit`` characters of them."""
    folders = [sysconfig.get_path("stdlib"), sysconfig.get_path("purelib")]
    paths = sorted({path for folder in folders for path in Path(folder).rglob("*.py")})
    random.Random(0).shuffle(paths)
    for path in paths:
        text = path.read_text(encoding="utf-8", errors="replace")
        limit -= len(text)
        if limit < 0:
            return
        yield text


def synthetic_tokenizer() -> str:
    """A byte-level BPE tokenizer.json with `VOCAB` tokens, the special ones last."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB - len(SPECIAL), min_frequency=1, show_progress=False, initial_alphabet=alphabet
    )
    tokenizer.train_from_iterator(texts(MAX_CHARS), trainer)
    tokenizer.add_special_tokens(list(SPECIAL))
    if tokenizer.get_vocab_size() != VOCAB:
        raise SystemExit(f"the vocabulary has {tokenizer.get_vocab_size()} tokens, not {VOCAB}: not text enough")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "tokenizer.json")
        tokenizer.save(str(path))
        return path.read_text(encoding="utf-8")


def answer(constraint: Constraint, text: str, budget: int, rng: np.random.Generator) -> tuple[float, list[float], int]:
    """(milliseconds to begin, milliseconds of each token, refusals) of one answer of random tokens.

    Tokens are timed on the thread's own clock: what else the machine does is not in them.
    """
    begin = time.perf_counter()
    matcher = constraint.matcher(text, VOCAB, (VOCAB - 1,), budget)
    begin_ms = (time.perf_counter() - begin) * 1e3
    steps: list[float] = []
    refusals = 0
    while not matcher.done:
        start = time.thread_time()
        matcher.forced()
        spent = time.thread_time() - start
        while True:
            start = time.thread_time()
            allowed = matcher.allowed()
            spent += time.thread_time() - start
            token = int(rng.choice(np.flatnonzero(allowed)))  # the model's part: not counted
            start = time.thread_time()
            taken = matcher.push(token)
            spent += time.thread_time() - start
            if taken:
                break
            refusals += 1
        steps.append(spent * 1e3)
    return begin_ms, steps, refusals


def measured(name: str, constraint: Constraint, text: str, budget: int, tokens: int) -> dict[str, Any]:
    """One row: at least ``tokens`` tokens in answers of at most ``budget``."""
    rng = np.random.default_rng(0)
    answer(constraint, text, budget, rng)
    begins: list[float] = []
    steps: list[float] = []
    refusals = answers = 0
    while len(steps) < tokens:
        begin_ms, its_steps, its_refusals = answer(constraint, text, budget, rng)
        begins.append(begin_ms)
        steps += its_steps
        refusals += its_refusals
        answers += 1
    return {
        "bench": "constrained",
        "form": name,
        "vocab": VOCAB,
        "vocabulary": "synthetic byte-level BPE",
        "budget": budget,
        "answers": answers,
        "tokens": len(steps),
        "refusals_per_token": round(refusals / len(steps), 4),
        "mean_ms": round(float(np.mean(steps)), 4),
        "median_ms": round(float(np.median(steps)), 4),
        "p99_ms": round(float(np.percentile(steps, 99)), 4),
        "max_ms": round(max(steps), 3),
        "begin_median_ms": round(float(np.median(begins)), 3),
    }


def main() -> None:
    """Measure every form and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, help="append the rows to this file")
    parser.add_argument("--tokens", type=int, default=4000, help="tokens of each row at least")
    parser.add_argument("--tokenizer", type=Path, help="a tokenizer.json made by an earlier run, kept here when absent")
    options = parser.parse_args()
    if options.tokenizer is not None and options.tokenizer.is_file():
        text = options.tokenizer.read_text(encoding="utf-8")
    else:
        text = synthetic_tokenizer()
        if options.tokenizer is not None:
            options.tokenizer.write_text(text, encoding="utf-8")
    facts = environment()
    start = time.perf_counter()
    choice(YES_NO).matcher(text, VOCAB, (VOCAB - 1,), 8)
    vocabulary_ms = round((time.perf_counter() - start) * 1e3)
    forms: list[tuple[str, Constraint, tuple[int, ...]]] = [
        ("choice", choice(YES_NO), (4,)),
        ("scene", json_schema(SCENE), (48, 256)),
        ("detections", json_schema(DETECTIONS), (96, 512)),
        ("json", json_object(), (64, 512)),
    ]
    for name, constraint, budgets in forms:
        for budget in budgets:
            row = measured(name, constraint, text, budget, options.tokens)
            write_line({**row, "vocabulary_ms": vocabulary_ms, **facts}, options.out)


if __name__ == "__main__":
    main()
