"""Linear RoPE scaling in the torch model and in the exported decoder: the same angles in prefill and in decoding."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from models.checkpoint import load_checkpoint
from runtime.decoder import OnnxDecoder, SessionSettings
from tests.decoder_models import export_decoder
from tests.models import tiny

IDS = np.random.default_rng(2).integers(0, 256, 60)
SPLIT = 23


def scaled_nvila(folder: Path, factor: float | None) -> Path:
    """A tiny NVILA whose decoder scales positions by ``factor``."""
    tiny.write_nvila(folder)
    path = folder / "llm" / "config.json"
    config = json.loads(path.read_text())
    theta = config.pop("rope_parameters")["rope_theta"]
    config["rope_theta"] = theta
    config["rope_scaling"] = None if factor is None else {"type": "linear", "factor": factor}  # as VILA writes it
    path.write_text(json.dumps(config))
    return folder


def torch_logits(llm: Any, whole: bool) -> np.ndarray:
    """Logits of IDS, in one pass or as a prefill and single steps on its cache."""
    ids = torch.from_numpy(IDS)[None]
    with torch.no_grad():
        if whole:
            return llm(ids).logits[0].float().numpy()
        first = llm(ids[:, :SPLIT], use_cache=True)
        rows = [first.logits[0]]
        for at in range(SPLIT, len(IDS)):
            rows.append(llm(ids[:, at : at + 1], past_key_values=first.past_key_values, use_cache=True).logits[0])
        return torch.cat(rows).float().numpy()


def onnx_logits(decoder: OnnxDecoder, whole: bool) -> np.ndarray:
    decoder.truncate(0, 0)
    if whole:
        return decoder.prefill(0, decoder.embed(IDS), num_logits=len(IDS))
    rows = [decoder.prefill(0, decoder.embed(IDS[:SPLIT]), num_logits=SPLIT)]
    rows += [decoder.decode(0, [int(token)]).copy() for token in IDS[SPLIT:]]
    return np.concatenate(rows)


def test_behaviour_21_linear_rope_scaling_agrees_between_prefill_and_decode(tmp_path: Path) -> None:
    models = {}
    for factor in (4.0, None):
        folder = scaled_nvila(tmp_path / str(factor), factor)
        llm = load_checkpoint(folder)[0].get_llm()
        files = export_decoder(folder, tmp_path / f"bundle-{factor}", accuracy_level=0, max_seq_len=64)
        models[factor] = llm, OnnxDecoder(files, SessionSettings(threads=1, spin=False))
    for llm, decoder in models.values():
        np.testing.assert_allclose(torch_logits(llm, whole=False), torch_logits(llm, whole=True), atol=1e-4)
        np.testing.assert_allclose(onnx_logits(decoder, whole=False), onnx_logits(decoder, whole=True), atol=1e-4)
    for run in (lambda pair: torch_logits(pair[0], True), lambda pair: onnx_logits(pair[1], True)):
        assert np.abs(run(models[4.0]) - run(models[None])).max() > 1e-2  # the scaling is in use
