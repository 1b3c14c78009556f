"""Int4 decoders in torch: the exporter's integers, and weights that are really used."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from torch import nn

from export.decoder.quantize import quantize_rtn
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
    assert model.llm is None
    assert torch.equal(model.generate(ids, media, config, max_new_tokens=4, do_sample=False), before)
    with caplog.at_level(logging.WARNING):
        again = model.generate(ids, media, config, quant_llm=False, max_new_tokens=4, do_sample=False)
    assert torch.equal(again, before)
    assert "released" in caplog.text


def test_a_layer_that_no_group_size_divides_keeps_its_weights(caplog) -> None:
    odd = nn.Sequential(nn.Linear(48, 64), nn.Linear(64, 4))
    with caplog.at_level(logging.WARNING):
        twin = quantized_decoder(odd)
    assert twin[0] is not odd[0]
    assert isinstance(twin[0], nn.Linear)
    assert isinstance(twin[1], Int4Linear)
    assert "48 inputs" in caplog.text
