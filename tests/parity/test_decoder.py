"""Rung "decoder" of the parity ladder: torch on dequantised weights = the ONNX decoder, on the demo checkpoints.

Prompts are questions about rendered scenes, with the image embeddings that the torch model computes for them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from transformers import GenerationConfig

from export.decoder import open_decoder_checkpoint, write_decoder
from models.checkpoint import load_checkpoint
from models.conversation import infer_stop_tokens
from runtime.decoder import OnnxDecoder, SessionSettings
from scripts.demo_model.evalset import eval_items
from tests.decoder_models import decoder_files, dequantize_

ROOT = Path(__file__).parents[2]
PROMPTS, SCENES, POSITIONS, MAX_NEW = 200, 50, 64, 48
GROUP_SIZE = 128


@dataclass
class Ladder:
    """One checkpoint: its torch language model on dequantised weights, 200 prompts, and both ONNX decoders."""

    language: Any
    stop_ids: frozenset[int]
    prompts: list[np.ndarray]
    exact: OnnxDecoder
    fast: OnnxDecoder

    def torch_logits(self, embeds: np.ndarray) -> np.ndarray:
        """Logits f32 [S, V] of a whole sequence of embeddings [S, D]."""
        with torch.no_grad():
            return self.language(inputs_embeds=torch.from_numpy(embeds)[None], use_cache=False).logits[0].numpy()


@pytest.fixture(scope="module", params=["demo-llava", "demo-nvila"])
def ladder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ladder]:
    folder = ROOT / "models" / "demo" / request.param
    model, family = load_checkpoint(folder)
    language = model.get_llm() if family == "nvila" else model
    prompts = list(prompts_of(model, language, request.param))
    dequantize_(language, GROUP_SIZE)
    decoders = [open_level(folder, tmp_path_factory.mktemp(request.param), level) for level in (0, 4)]
    yield Ladder(language, frozenset(infer_stop_tokens(model.tokenizer)), prompts, *decoders)
    for decoder in decoders:
        decoder.close()


def prompts_of(model: Any, language: Any, name: str) -> Iterator[np.ndarray]:
    """Inputs of the language model, f32 [S, D], for questions about scenes: taken where torch hands them over."""
    seen: list[np.ndarray] = []

    def take(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(kwargs["inputs_embeds"][0].float().numpy())

    hook = language.model.register_forward_pre_hook(take, with_kwargs=True)
    config = GenerationConfig(max_new_tokens=1, do_sample=False)
    each = PROMPTS // SCENES
    for item in eval_items(SCENES, seed=11, family=name):
        for _, question, _ in islice(item.qas, each):
            seen.clear()
            model.generate_content([PIL.Image.fromarray(item.image), question], config)
            yield seen[0]
    hook.remove()


def open_level(checkpoint: Path, out: Path, accuracy_level: int) -> OnnxDecoder:
    with open_decoder_checkpoint(checkpoint) as opened:
        record = write_decoder(opened, out, max_seq_len=512, group_size=GROUP_SIZE, accuracy_level=accuracy_level)
    return OnnxDecoder(decoder_files(out, record), SessionSettings(threads=1, spin=False))


def greedy(decoder: OnnxDecoder, embeds: np.ndarray, stop_ids: frozenset[int]) -> list[int]:
    """Token ids up to and with the first stop id."""
    decoder.truncate(0, 0)
    ids = [int(decoder.prefill(0, embeds)[0].argmax())]
    while ids[-1] not in stop_ids and len(ids) < MAX_NEW:
        ids.append(int(decoder.decode(0, ids[-1:])[0].argmax()))
    return ids


def forced(decoder: OnnxDecoder, embeds: np.ndarray) -> np.ndarray:
    """Logits of the last 64 positions of a sequence."""
    decoder.truncate(0, 0)
    return decoder.prefill(0, embeds, num_logits=min(POSITIONS, len(embeds)))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(-1, keepdims=True))


def test_prompts_are_two_hundred_and_long_enough(ladder: Ladder) -> None:
    assert len(ladder.prompts) == PROMPTS
    assert min(len(prompt) for prompt in ladder.prompts) >= POSITIONS // 2


def test_level_0_equals_torch_in_logits_and_greedy_ids(ladder: Ladder) -> None:
    for prompt in ladder.prompts:
        ids = greedy(ladder.exact, prompt, ladder.stop_ids)
        sequence = np.concatenate([prompt, ladder.exact.embed(ids[:-1])])
        expected = ladder.torch_logits(sequence)
        # Each id is torch's choice after the ids before it, so torch's greedy decoding is this very sequence.
        assert expected[len(prompt) - 1 :].argmax(-1).tolist() == ids
        found = forced(ladder.exact, sequence)
        np.testing.assert_allclose(found, expected[-len(found) :], atol=1e-4, rtol=0)


def test_level_4_is_close_to_torch_and_answers_the_same(ladder: Ladder) -> None:
    divergences, same = [], 0
    for prompt in ladder.prompts:
        ids = greedy(ladder.exact, prompt, ladder.stop_ids)
        same += greedy(ladder.fast, prompt, ladder.stop_ids) == ids
        sequence = np.concatenate([prompt, ladder.exact.embed(ids[:-1])])
        found = forced(ladder.fast, sequence)
        log_p = log_softmax(ladder.torch_logits(sequence)[-len(found) :])
        divergences.append((np.exp(log_p) * (log_p - log_softmax(found))).sum(-1))
    assert np.concatenate(divergences).mean() <= 1e-3
    assert same / len(ladder.prompts) >= 0.99
