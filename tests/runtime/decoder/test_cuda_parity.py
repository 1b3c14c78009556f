"""The CUDA decoder on the emulator against torch with the same dequantised weights, on the demo models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from models.checkpoint import load_checkpoint  # noqa: E402
from runtime.decoder import CudaOptions  # noqa: E402
from runtime.fusion import PlacedIds  # noqa: E402
from runtime.session import Session  # noqa: E402
from tests.parity.decoders import dequantize_decoder  # noqa: E402
from tests.runtime.decoder.cuda_bundles import DEMO_MODELS, demo_bundle, go_on_for_ever, needs_compiler  # noqa: E402

GROUP_SIZE, TOKENS = 128, 16
QUESTIONS = ("Describe the image.", "How many shapes are there?")


def picture(seed: int) -> np.ndarray:
    """A square and a bar on a noisy ground."""
    image = np.random.default_rng(seed).integers(90, 130, (64, 96, 3), np.uint8)
    image[8:32, 16:40] = (200, 30, 30)
    image[40:52, 20:80] = (30, 60, 220)
    return image


@pytest.mark.torch
@pytest.mark.parametrize("graphs", [True, False], ids=["graphs", "launches"])
@pytest.mark.parametrize("name", ["demo-llava", "demo-nvila"])
def test_sixteen_greedy_tokens_of_a_session_are_torchs(tmp_path: Path, name: str, graphs: bool) -> None:
    """Each token is torch's choice after the ones before it, so torch's greedy decoding is this very sequence.

    Torch computes in f32; f16 activations move a logit by far less than the best one leads by.
    """
    needs_compiler()
    model, family = load_checkpoint(DEMO_MODELS / name)
    dequantize_decoder(model, family, GROUP_SIZE)
    language: Any = model.get_llm() if family == "nvila" else model
    bundle = demo_bundle(name, tmp_path / "bundle")
    cuda = CudaOptions(device="emulator", graphs=graphs)
    with Session.open(bundle.path, "cuda", threads=1, verify="none", chats=0, cuda=cuda) as session:
        go_on_for_ever(session)
        pipeline, prompts = session._pipeline, []
        fuse = pipeline.fuse
        pipeline.fuse = lambda *args: prompts.append(fuse(*args)) or prompts[-1]  # type: ignore[method-assign]
        for index, question in enumerate(QUESTIONS):
            answer = session.generate(question, [picture(index)], max_new_tokens=TOKENS)
            assert len(answer.token_ids) == TOKENS
            expected = log_probabilities(language, embeds_of(session, prompts[-1], answer.token_ids))[-TOKENS:]
            assert expected.argmax(-1).tolist() == list(answer.token_ids)
            chosen = expected[np.arange(TOKENS), answer.token_ids]
            np.testing.assert_allclose(answer.logprobs, chosen, atol=0.05)


def embeds_of(session: Session, prompt: Any, token_ids: tuple[int, ...]) -> np.ndarray:
    """What the decoder was fed, f32 [S, D]: prompt and answer, without the last token, which nothing follows."""
    assert isinstance(prompt, PlacedIds)
    embed = session._pipeline._decoder.embed
    embeds = embed(np.where(prompt.ids < 0, 0, prompt.ids).astype(np.int64))
    embeds[prompt.ids < 0] = prompt.images
    return np.concatenate([embeds, embed(list(token_ids[:-1]))])


def log_probabilities(language: Any, embeds: np.ndarray) -> np.ndarray:
    """Natural logarithms [S, V] by torch's model."""
    with torch.no_grad():
        logits = language(inputs_embeds=torch.from_numpy(embeds)[None], use_cache=False).logits[0]
    result: np.ndarray = torch.log_softmax(logits.double(), -1).numpy()
    return result
