"""The ONNX decoder against transformers' models with the same dequantised weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from runtime.decoder import OnnxDecoder, SessionSettings  # noqa: E402
from tests.decoder_models import Shape, export_decoder, save_checkpoint, torch_twin, with_shape  # noqa: E402

POSITIONS = 64
SHAPES = {
    "llama, grouped queries": (Shape(), 32),
    "llama, one query head a key, untied, all biases": (
        with_shape(kv_heads=4, attention_bias=True, mlp_bias=True),
        64,
    ),
    "llama, head size 16, linear rope": (
        with_shape(
            head_dim=16, heads=8, rope=(("rope_type", "linear"), ("factor", 4.0), ("rope_theta", 5e5)), context=40
        ),
        128,
    ),
    "llama, head size 128, three groups": (with_shape(head_dim=128, heads=2, kv_heads=1, hidden=384, ffn=640), 128),
    "qwen2, tied, head size 64, seven groups": (
        with_shape(family="qwen2", tied=True, hidden=224, heads=7, kv_heads=1, head_dim=64, ffn=288),
        32,
    ),
}
marks = pytest.mark.parametrize(("shape", "group"), SHAPES.values(), ids=SHAPES.keys())


def log_softmax(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64)
    wide -= wide.max(-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(-1, keepdims=True))


def opened(checkpoint: Path, folder: Path, group: int, accuracy: int) -> OnnxDecoder:
    files = export_decoder(checkpoint, folder / f"level{accuracy}", group_size=group, accuracy_level=accuracy)
    return OnnxDecoder(files, SessionSettings(threads=1, spin=False))


@pytest.mark.torch
@marks
def test_logits_equal_transformers_over_teacher_forced_positions(tmp_path: Path, shape: Shape, group: int) -> None:
    checkpoint = save_checkpoint(tmp_path / "checkpoint", shape)
    twin = torch_twin(checkpoint, group)
    ids = np.random.default_rng(1).integers(0, shape.vocab, POSITIONS)
    with torch.no_grad():
        expected = twin(torch.from_numpy(ids)[None], logits_to_keep=0).logits[0].numpy()
    assert np.abs(expected).max() > 2  # an error of 1e-4 is small against it

    exact = opened(checkpoint, tmp_path, group, accuracy=0)
    whole = exact.prefill(0, exact.embed(ids), num_logits=POSITIONS)
    np.testing.assert_allclose(whole, expected, atol=1e-4, rtol=0)

    fast = opened(checkpoint, tmp_path, group, accuracy=4)
    rough = fast.prefill(0, fast.embed(ids), num_logits=POSITIONS)
    log_p, log_q = log_softmax(expected), log_softmax(rough)
    assert (np.exp(log_p) * (log_p - log_q)).sum(-1).mean() <= 1e-3


@pytest.mark.torch
@marks
def test_greedy_ids_equal_transformers_generate(tmp_path: Path, shape: Shape, group: int) -> None:
    checkpoint = save_checkpoint(tmp_path / "checkpoint", shape)
    twin = torch_twin(checkpoint, group)
    decoder = opened(checkpoint, tmp_path, group, accuracy=0)
    prompt = np.random.default_rng(2).integers(0, shape.vocab, 12)
    expected = twin.generate(
        torch.from_numpy(prompt)[None], max_new_tokens=24, do_sample=False, eos_token_id=None, pad_token_id=0
    )[0, 12:].tolist()
    logits = decoder.prefill(0, decoder.embed(prompt))
    ids: list[int] = []
    for _ in range(24):
        ids.append(int(logits[-1].argmax()))
        logits = decoder.decode(0, ids[-1:])
    assert ids == expected
