"""Int4 linears by our kernels: the emulator stands for the GPU, tensors in host memory for those on it."""

from __future__ import annotations

import copy
import logging
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from kernels.driver.opening import open_device
from kernels.errors import NoDeviceError
from kernels.kernel import F64
from kernels.loading import Kernels
from kernels.packing import IntWeight, quantize_nearest
from kernels.packing.t16 import split_int8
from kernels.reference import gemv as reference
from models import device_products, int4
from models.device_products import DeviceProducts, products_for, products_on
from models.int4 import Int4Linear, quantized_decoder

NAMES = {torch.float16: "f16", torch.bfloat16: "bf16"}


class Counted(DeviceProducts):
    """The kernels of the emulator, and how often each was launched."""

    def __init__(self) -> None:
        self.device = open_device("emulator")
        self.kernels = Kernels(self.device)
        stream = self.device.create_stream()
        super().__init__(self.kernels, lambda: stream)


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counted]:
    """Every tensor counts as one on the device."""
    if shutil.which("g++") is None:
        pytest.skip("the emulator compiles with g++, and there is none")
    products = Counted()
    monkeypatch.setattr(int4, "products_for", lambda x: products)
    yield products
    products.kernels.close()
    products.device.close()


def integers(n: int, k: int, group: int, bits: int = 4) -> IntWeight:
    return quantize_nearest(np.random.default_rng(n + k).normal(0, 0.05, (n, k)).astype(np.float32), group, bits)


def activations(tokens: int, k: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(tokens, k, generator=torch.Generator().manual_seed(tokens)).to(dtype)


def expected(x: Tensor, weight: IntWeight, bias: Tensor | None) -> tuple[F64, F64]:
    """The answer in float64, and the bound of the kernels: sums in f32, rounded once."""
    rows = x.detach().double().numpy()
    w = weight.dequantize().astype(np.float64)
    b = None if bias is None else bias.detach().double().numpy()
    answer = reference.gemv(rows, w, bias=b)
    error = reference.accumulation(rows, w, 32, bias=b)
    return answer, reference.rounding(answer, error, NAMES[x.dtype])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("tokens", [1, 8, 9, 70])
@pytest.mark.parametrize("group", [32, 64, 128])
def test_a_linear_equals_the_float_one_within_the_derived_bound(
    products: Counted, group: int, tokens: int, dtype: torch.dtype
) -> None:
    weight, bias = integers(37, 256, group), nn.Parameter(torch.linspace(-1, 1, 37).to(dtype))
    x = activations(tokens, 256, dtype)
    y = Int4Linear(weight, bias)(x)
    answer, bound = expected(x, weight, bias)
    assert y.dtype == dtype
    assert (np.abs(y.double().numpy() - answer) <= bound).all()
    symbol = "gemv" if tokens <= 8 else "gemm_64"
    assert dict(products.kernels.launched) == {f"{symbol}_g{group}_{NAMES[dtype]}": 1}


def test_a_head_of_eight_bits_is_two_products_in_one(products: Counted) -> None:
    weight, x = integers(19, 128, 64, bits=8), activations(3, 128, torch.float16)
    y = Int4Linear(weight, None)(x)
    answer, _ = expected(x, weight, None)
    twice, halves = np.tile(x.double().numpy(), 2), split_int8(weight).dequantize().astype(np.float64)
    bound = reference.rounding(answer, reference.accumulation(twice, halves, 32), "f16")
    assert (np.abs(y.double().numpy() - answer) <= bound).all()
    assert dict(products.kernels.launched) == {"gemv_g64_f16": 1}


def test_leading_dimensions_and_views_are_kept(products: Counted) -> None:
    linear, x = Int4Linear(integers(16, 64, 64), None), activations(24, 64, torch.float16)
    flat = linear(x)
    assert torch.equal(linear(x.view(2, 12, 64)), flat.view(2, 12, 16))
    assert torch.equal(linear(x.view(2, 12, 64).transpose(0, 1)), flat.view(2, 12, 16).transpose(0, 1))
    shifted = torch.cat([torch.zeros(1, dtype=x.dtype), x.flatten()])[1:].view(24, 64)
    assert shifted.data_ptr() % 16
    assert torch.equal(linear(shifted), flat)
    assert torch.equal(linear(x[5]), linear(x[5:6])[0])


@pytest.mark.parametrize("tokens", [4, 20])
def test_the_kernel_reads_and_writes_the_tensors_themselves(
    products: Counted, monkeypatch: pytest.MonkeyPatch, tokens: int
) -> None:
    linear, x = Int4Linear(integers(16, 64, 64), None), activations(tokens, 64, torch.float16)
    seen: list[tuple[Any, ...]] = []
    real = Kernels.launch
    monkeypatch.setattr(Kernels, "launch", lambda self, *args: seen.append(args) or real(self, *args))
    y = linear(x)
    assert {x.data_ptr(), y.data_ptr()} <= set(seen[0][6:])


def test_floats_of_32_bits_and_gradients_take_the_other_path(products: Counted) -> None:
    linear = Int4Linear(integers(16, 64, 64), None)
    linear(activations(2, 64, torch.float32))
    wanted = activations(2, 64, torch.float16).requires_grad_()
    assert linear(wanted).requires_grad
    with torch.no_grad():
        assert not products.kernels.launched
        linear(wanted)
    assert products.kernels.launched


def test_replaced_tensors_are_packed_again(products: Counted) -> None:
    weight, x = integers(16, 64, 64), activations(2, 64, torch.float16)
    linear = Int4Linear(weight, nn.Parameter(torch.zeros(16)))
    before = linear(x)
    twin = copy.deepcopy(linear)
    with torch.no_grad():
        linear.bias += 1
    answer, bound = expected(x, weight, linear.bias)
    assert (np.abs(linear(x).detach().double().numpy() - answer) <= bound).all()
    linear.q = torch.zeros_like(linear.q)
    answer, bound = expected(x, linear.integers(), linear.bias)
    assert (np.abs(linear(x).double().detach().numpy() - answer) <= bound).all()
    assert torch.equal(twin(x), before)
    assert twin.__getstate__()["_packed"] is None


def test_scales_that_do_not_fit_leave_the_weight_to_torch(products: Counted, caplog: pytest.LogCaptureFixture) -> None:
    weight = IntWeight(
        np.full((4, 64), 130, np.uint8), np.full((4, 1), 128, np.uint8), np.full((4, 1), 8000, np.float16), 64, 8
    )
    y = Int4Linear(weight, None)(torch.full((1, 64), 2.0**-8, dtype=torch.float16))
    assert y.tolist() == [[4000.0] * 4]
    assert not products.kernels.launched
    assert "dequantised for each use: scales has the value 8000" in caplog.text


def test_every_linear_of_a_decoder_runs_on_the_kernels(products: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=50,
    )
    twin = quantized_decoder(LlamaForCausalLM(config).half().eval(), 32, head_bits=4)
    ids = torch.tensor([[1, 2, 3, 4]])
    with torch.no_grad():
        logits = twin(ids).logits
        assert sum(products.kernels.launched.values()) == 2 * 7 + 1
        monkeypatch.setattr(int4, "products_for", lambda x: None)
        plain = twin(ids).logits
    assert (logits - plain).abs().max() <= 2.0**-8 * plain.abs().max()
    assert torch.equal(logits.argmax(-1), plain.argmax(-1))


def test_tensors_elsewhere_have_no_kernels() -> None:
    assert products_for(torch.zeros(1)) is None


def test_a_gpu_without_driver_is_named_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def refuse(backend: str, ordinal: int) -> None:
        raise NoDeviceError("no driver", hint="install one")

    monkeypatch.setattr(device_products, "open_device", refuse)
    products_on.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert products_on(3) is None
        assert products_on(3) is None
    products_on.cache_clear()
    assert caplog.messages == ["int4 weights are dequantised for each use: no driver (install one)"]
