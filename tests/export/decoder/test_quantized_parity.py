"""Quantised checkpoints and wider heads in ONNX Runtime against transformers' own models on the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from kernels.packing import quantize_nearest  # noqa: E402
from runtime.decoder import OnnxDecoder, SessionSettings  # noqa: E402
from tests.decoder_models import Shape, export_decoder, save_checkpoint, save_packed, with_shape  # noqa: E402

LLAMA3 = (
    ("rope_type", "llama3"),
    ("rope_theta", 1e4),
    ("factor", 4.0),
    ("low_freq_factor", 1.0),
    ("high_freq_factor", 4.0),
    ("original_max_position_embeddings", 40),
)
SHAPES = {
    "llama": Shape(),
    "qwen2 with biases and a tied head": with_shape(family="qwen2", tied=True),
    "llama3 RoPE, no grouping, biases": with_shape(kv_heads=4, attention_bias=True, mlp_bias=True, rope=LLAMA3),
    "linear RoPE": with_shape(rope=(("rope_type", "linear"), ("rope_theta", 1e4), ("factor", 2.0)), context=80),
    "dynamic RoPE": with_shape(rope=(("rope_type", "dynamic"), ("rope_theta", 1e4), ("factor", 2.0))),
}


def twin(folder: Path, shape: Shape, head_bits: int) -> Any:
    """transformers' model on the dequantised linears, with the head as it is to be stored and the table in f16."""
    from transformers import AutoModelForCausalLM

    weights = dict(shape.weights())
    table = weights["model.embed_tokens.weight"]
    head = weights.get("lm_head.weight", table)
    for name, tensor in weights.items():
        if ".layers." in name and tensor.ndim == 2:
            weights[name] = quantize_nearest(tensor, 32).dequantize()
    wide = head.astype(np.float16).astype(np.float32)
    stored_head = wide if head_bits == 16 else quantize_nearest(head, 32, head_bits).dequantize()
    path = save_checkpoint(folder, shape, weights=weights)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        model.get_input_embeddings().weight = torch.nn.Parameter(torch.from_numpy(table).half().float())
        model.lm_head.weight = torch.nn.Parameter(torch.from_numpy(stored_head))
    return model


def opened(folder: Path, shape: Shape, head_bits: int, layout: str, accuracy_level: int = 0) -> OnnxDecoder:
    save_packed(folder / "checkpoint", shape, layout, record={"method": "awq", "head_bits": head_bits})
    files = export_decoder(
        folder / "checkpoint", folder / "bundle", group_size=None, accuracy_level=accuracy_level, max_seq_len=96
    )
    return OnnxDecoder(files, SessionSettings(threads=1, spin=False))


def logits_of(model: Any, ids: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.from_numpy(ids)[None]).logits[0].numpy()


@pytest.mark.torch
@pytest.mark.parametrize("head_bits", [4, 8, 16])
@pytest.mark.parametrize("name", SHAPES)
def test_an_awq_checkpoint_gives_the_logits_of_its_dequantised_weights(
    tmp_path: Path, name: str, head_bits: int
) -> None:
    shape = SHAPES[name]
    decoder, model = opened(tmp_path, shape, head_bits, "autoawq-gemm"), twin(tmp_path / "twin", shape, head_bits)
    ids = np.random.default_rng(3).integers(0, shape.vocab, 90)
    expected = logits_of(model, ids)
    prefill = decoder.prefill(0, decoder.embed(ids[:70]), num_logits=70)
    steps = [decoder.decode(0, [int(token)])[0].copy() for token in ids[70:]]
    np.testing.assert_allclose(prefill, expected[:70], atol=1e-4, rtol=0)
    np.testing.assert_allclose(np.array(steps), expected[70:], atol=1e-4, rtol=0)


@pytest.mark.torch
@pytest.mark.parametrize("layout", ["autoawq-gemv", "llm-awq-v2", "gptq-v2", "compressed-tensors"])
def test_other_layouts_of_the_same_integers_give_the_same_logits(tmp_path: Path, layout: str) -> None:
    ids = np.random.default_rng(4).integers(0, 96, 40)
    found = []
    for one in ("autoawq-gemm", layout):
        decoder = opened(tmp_path / one, Shape(), 4, one)
        found.append(decoder.prefill(0, decoder.embed(ids), num_logits=40))
    assert np.array_equal(found[0], found[1])


@pytest.mark.torch
@pytest.mark.parametrize("head_bits", [4, 8])
def test_int8_activations_stay_close_whatever_the_head(tmp_path: Path, head_bits: int) -> None:
    exact = opened(tmp_path / "exact", Shape(), head_bits, "autoawq-gemm")
    fast = opened(tmp_path / "fast", Shape(), head_bits, "autoawq-gemm", accuracy_level=4)
    ids = np.random.default_rng(5).integers(0, 96, 60)
    logits = [decoder.prefill(0, decoder.embed(ids), num_logits=60) for decoder in (exact, fast)]
    assert np.linalg.norm(logits[1] - logits[0]) < 0.05 * np.linalg.norm(logits[0])


@pytest.mark.torch
def test_eight_bits_bring_the_head_close_to_its_floats(tmp_path: Path) -> None:
    ids = np.random.default_rng(6).integers(0, 96, 60)
    found = {}
    for bits in (4, 8, 16):
        decoder = opened(tmp_path / str(bits), Shape(), bits, "autoawq-gemm")
        found[bits] = decoder.prefill(0, decoder.embed(ids), num_logits=60)
    error = {bits: np.linalg.norm(found[bits] - found[16]) / np.linalg.norm(found[16]) for bits in (4, 8)}
    assert error[8] < 0.01 < 0.05 < error[4]
