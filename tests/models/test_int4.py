"""Int4 decoders in torch: the exporter's integers, and weights that are really used."""

from __future__ import annotations

import copy
import logging
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from export.decoder.quantize import quantize_rtn
from kernels import packing
from models import int4
from models.int4 import Int4Linear, group_size_for, quantize_nearest, quantized_decoder
from models.nvila import NVILAQwen2
from tests.models.tiny import picture


@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("shift", [0.0, 3.0, -3.0])
def test_integers_are_the_exporters(group_size: int, shift: float) -> None:
    weight = torch.randn(24, 256, generator=torch.Generator().manual_seed(3)) * 0.1 + shift
    weight[0] = 0
    assert quantize_nearest(weight, group_size).equals(quantize_rtn(weight.numpy(), group_size))


def test_linear_computes_with_the_dequantised_weight() -> None:
    linear = nn.Linear(64, 8)
    integers = quantize_nearest(linear.weight, 32)
    ours = Int4Linear(integers, linear.bias)
    x = torch.randn(3, 64)
    expected = x.double() @ torch.from_numpy(integers.dequantize()).double().T + linear.bias.double()
    torch.testing.assert_close(ours(x).double(), expected, atol=1e-5, rtol=1e-5)
    assert np.array_equal(ours.weight.numpy(), integers.dequantize())
    assert ours.half()(x.half()).dtype == torch.float16
    assert np.array_equal(ours.weight.numpy(), integers.dequantize())  # a cast leaves the scales' bits alone


@pytest.mark.parametrize(("inputs", "size"), [(256, 128), (192, 64), (96, 32), (100, None)])
def test_group_size_falls_back_to_one_that_divides(inputs: int, size: int | None) -> None:
    assert group_size_for(inputs, 128) == size


def test_behaviour_23_the_two_paths_use_different_weights_and_share_the_rest(loaded, caplog) -> None:
    model = loaded("nvila", seed=5)
    assert model.quantization == "none"
    with caplog.at_level(logging.INFO):
        twin = model.decoder(True)
    assert model.quantization == "rtn"
    assert "round to nearest" in caplog.text
    assert model.decoder(True) is twin
    assert model.decoder(False) is model.llm
    linear, other = model.llm.model.layers[0].mlp.up_proj, twin.model.layers[0].mlp.up_proj
    assert isinstance(linear, nn.Linear)
    assert isinstance(other, Int4Linear)
    assert not torch.equal(linear.weight, other.weight)
    assert twin.model.embed_tokens.weight is model.llm.model.embed_tokens.weight
    ids = torch.tensor([[1, 2, 3]])
    assert not torch.equal(model.llm(ids).logits, twin(ids).logits)
    assert not any("int4" in name or "scales" in name for name in model.state_dict())


def test_int4_decoder_equals_a_float_decoder_with_the_dequantised_weights(checkpoints) -> None:
    model = NVILAQwen2.load_pretrained(checkpoints("nvila"))
    twin = quantized_decoder(model.llm)
    for name, module in twin.named_modules():
        if isinstance(module, Int4Linear):
            model.llm.get_submodule(name).weight.data = module.weight
    ids = torch.tensor([[5, 6, 7, 8]])
    assert torch.equal(model.llm(ids).logits, twin(ids).logits)


def test_released_full_weights_leave_the_int4_ones_answering(checkpoints, caplog) -> None:
    model = NVILAQwen2.load_pretrained(checkpoints("nvila"))
    ids, media, config = model.prepare_prompt([picture(40, 40), "q"])
    before = model.generate(ids, media, config, max_new_tokens=4, do_sample=False)
    model.release_full_weights()
    assert torch.equal(model.generate(ids, media, config, max_new_tokens=4, do_sample=False), before)
    with caplog.at_level(logging.WARNING):
        again = model.generate(ids, media, config, quant_llm=False, max_new_tokens=4, do_sample=False)
    assert torch.equal(again, before)
    assert "released" in caplog.text


def test_the_integers_move_with_their_model(checkpoints) -> None:
    model = NVILAQwen2.load_pretrained(checkpoints("nvila"))
    twin = model.decoder(True)
    model.to("meta")
    assert {tensor.device.type for tensor in [*twin.buffers(), *twin.parameters()]} == {"meta"}


def test_a_layer_that_no_group_size_divides_keeps_its_weights(caplog) -> None:
    llm = tiny_llama(intermediate_size=48)
    with caplog.at_level(logging.WARNING):
        twin = quantized_decoder(llm)
    layer = twin.model.layers[0]
    assert layer.mlp.down_proj is llm.model.layers[0].mlp.down_proj
    assert isinstance(layer.mlp.up_proj, Int4Linear)
    assert "48 inputs" in caplog.text


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("outputs", "inputs"), [(5, 96), (300, 128)])
def test_blocks_of_rows_change_nothing(bits: int, outputs: int, inputs: int, monkeypatch) -> None:
    linear = nn.Linear(inputs, outputs)
    whole = Int4Linear.nearest(linear, 32, bits)
    monkeypatch.setattr(int4, "_BLOCK_VALUES", 7 * inputs)
    parts = Int4Linear.nearest(linear, 32, bits)
    assert whole.integers().equals(parts.integers())
    assert whole.integers().equals(packing.quantize_nearest(linear.weight.detach().numpy(), 32, bits))
    assert torch.equal(whole.weight, parts.weight)
    x = torch.randn(3, inputs)
    torch.testing.assert_close(parts(x), functional.linear(x, whole.weight, linear.bias))


@pytest.mark.parametrize("bits", [4, 8])
def test_a_state_dict_gives_the_same_module_and_takes_bits_over_eight_of_a_byte(bits: int) -> None:
    linear = nn.Linear(64, 16)
    first, second = (Int4Linear.nearest(module, 32, bits) for module in (linear, nn.Linear(64, 16)))
    second.load_state_dict(first.state_dict())
    x = torch.randn(2, 64)
    assert torch.equal(first(x), second(x))
    assert first.q.nbytes == 64 * 16 * bits // 8
    moved = copy.deepcopy(first).to(torch.bfloat16)
    assert moved.integers().equals(first.integers())
    assert moved.bias.dtype == torch.bfloat16
    assert moved.to("meta").q.device.type == "meta"


@pytest.mark.parametrize(("head_bits", "kind"), [(4, Int4Linear), (8, Int4Linear), (16, nn.Linear)])
def test_the_head_takes_the_bits_it_is_given(head_bits: int, kind: type) -> None:
    llm = tiny_llama()
    twin = quantized_decoder(llm, head_bits=head_bits)
    assert isinstance(twin.lm_head, kind)
    if kind is Int4Linear:
        expected = packing.quantize_nearest(llm.lm_head.weight.detach().numpy(), 64, head_bits)
        assert twin.lm_head.integers().equals(expected)
    else:
        assert twin.lm_head is llm.lm_head
    assert isinstance(llm.lm_head, nn.Linear)
    assert twin.model.rotary_emb is llm.model.rotary_emb
    assert twin.model.layers[1].input_layernorm is llm.model.layers[1].input_layernorm


def tiny_llama(**changes: Any) -> LlamaForCausalLM:
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=40, **sizes | changes)).eval()
