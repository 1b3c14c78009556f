"""Pieces of the steps: the final norm as transformers computes it, kept tensors in their stored dtype, devices."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

from export.progress import Progress
from export.quantization.request import QuantizeRequest
from export.quantization.run import quantize
from export.quantization.search import final_norm, torch_device
from export.quantization.source import DecoderSource
from runtime.errors import EngineError
from tests.models.tiny import write_llava, write_nvila


@torch.no_grad()
def test_final_norm_is_transformers(tmp_path: Path) -> None:
    root = write_nvila(tmp_path / "c")
    states = torch.randn(11, 64, generator=torch.Generator().manual_seed(0)) * 30
    with DecoderSource(root) as source:
        found = final_norm(states.numpy(), source)
        norm = Qwen2RMSNorm(64, source.decoder.config.rms_eps)
    norm.weight.copy_(load_file(root / "llm" / "model.safetensors")["model.norm.weight"])
    np.testing.assert_allclose(found, norm(states).numpy(), rtol=1e-5, atol=1e-6)
    assert found.dtype == np.float32


def test_norms_and_tables_of_a_bf16_checkpoint_stay_bf16(tmp_path: Path) -> None:
    root = write_llava(tmp_path / "c", dtype=torch.bfloat16)
    request = QuantizeRequest(root, tmp_path / "out", method="rtn", head_bits="4", group_size=32)
    stored, source = (load_file(folder / "model.safetensors") for folder in (quantize(request, Progress()).out, root))
    kept = sorted(set(stored) & set(source))
    assert len(kept) > 20
    for name in kept:  # without a search nothing is scaled, and bf16 norms round to themselves
        assert stored[name].dtype == torch.bfloat16
        assert torch.equal(stored[name], source[name]), name
    scales = [tensor.dtype for name, tensor in stored.items() if name.endswith(".scales")]
    assert scales == [torch.float16] * 14


def test_a_device_that_is_not_there_is_named() -> None:
    assert torch_device("cpu").type == "cpu"
    with pytest.raises(EngineError, match=r"--device cuda:99: there are \d+ CUDA devices"):
        torch_device("cuda:99")
