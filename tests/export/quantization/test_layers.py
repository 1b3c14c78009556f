"""One layer in memory: what it computes is what transformers' whole model computes, norms are rounded without loss."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlavaForConditionalGeneration, Qwen2ForCausalLM

from export.quantization.layers import LayerWindow, round_norms
from export.quantization.source import DecoderSource
from models.awq import run_layer
from runtime.errors import ExportError
from tests.models.tiny import write_llava, write_nvila

CPU = torch.device("cpu")


@pytest.mark.parametrize("layout", ["llava", "nvila"])
@torch.no_grad()
def test_layers_after_each_other_are_the_model(tmp_path: Path, layout: str) -> None:
    root = write_llava(tmp_path / "c") if layout == "llava" else write_nvila(tmp_path / "c")
    if layout == "llava":
        body = LlavaForConditionalGeneration.from_pretrained(root).eval().model.language_model
    else:
        body = Qwen2ForCausalLM.from_pretrained(root / "llm").eval().model
    states = torch.randn(1, 23, 64, generator=torch.Generator().manual_seed(1))
    wanted = body(inputs_embeds=states, output_hidden_states=True).hidden_states
    with DecoderSource(root) as source:
        window = LayerWindow(source, CPU)
        for index in range(2):
            torch.testing.assert_close(states, wanted[index], rtol=1e-5, atol=1e-5)
            window.load(index)
            states = run_layer(window.layer, window.batch(states))
    torch.testing.assert_close(body.norm(states), wanted[2], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_norms_are_rounded_without_changing_what_the_layer_computes(tmp_path: Path) -> None:
    with DecoderSource(write_nvila(tmp_path / "c")) as source:
        window = LayerWindow(source, CPU)
        window.load(1)
    layer = window.layer
    layer.input_layernorm.weight[5] = 1e-30  # rounds to 0 in f16
    batch = window.batch(torch.randn(1, 9, 64, generator=torch.Generator().manual_seed(2)))
    before = run_layer(layer, batch)
    dtypes = {"input_layernorm": torch.float16, "post_attention_layernorm": torch.bfloat16}
    round_norms(layer, dtypes)
    for name, dtype in dtypes.items():
        gain = layer.get_submodule(name).weight
        assert torch.equal(gain, gain.to(dtype).float())
    after = run_layer(layer, batch)
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)
    layer.input_layernorm.weight[5] = 1e6
    with pytest.raises(ExportError, match=r"input_layernorm: a gain of 1e\+06 is too large for torch\.float16"):
        round_norms(layer, dtypes)


def test_weights_that_are_not_finite_are_named(tmp_path: Path) -> None:
    root = write_nvila(tmp_path / "c")
    tensors = load_file(root / "llm" / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = float("inf")
    save_file(tensors, root / "llm" / "model.safetensors", metadata={"format": "pt"})
    with DecoderSource(root) as source:
        window = LayerWindow(source, CPU)
        window.load(0)
        with pytest.raises(ExportError, match=r"model\.layers\.1\.mlp\.up_proj\.weight has values that are not finite"):
            window.load(1)
