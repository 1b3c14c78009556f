"""Products of torch tensors with int4 weights by our own CUDA kernels, on torch's current stream.

Tensors are handed over by their address: no copy and no synchronisation, but for a weight's first use, which packs it.
Tested on the emulator; on a GPU not run so far.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kernels.arrays import ALIGNMENT, Activation, DeviceArray, DType
from kernels.driver.opening import open_device
from kernels.driver.protocol import Stream
from kernels.errors import KernelError
from kernels.launch.gemm import gemm
from kernels.launch.gemv import gemv
from kernels.launch.weights import T16Weight, upload_t16
from kernels.loading import Kernels
from kernels.packing import IntWeight, pack
from kernels.packing.t16 import GROUP_SIZES, split_int8
from kernels.state import MAX_STEP_TOKENS

ACTIVATIONS: dict[torch.dtype, Activation] = {torch.float16: "f16", torch.bfloat16: "bf16"}
FIRST_ENTRIES = ("gemv_g128_f16", "gemm_64_g128_f16")  # loaded at once: a device without code for them is not used
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PackedLinear:
    """A linear as the kernels read it, beside the integers: a little more than half a byte a weight again.

    copies: how often the activations stand side by side (two for eight bits, which are two halves of four).
    """

    weight: T16Weight
    bias: DeviceArray | None
    copies: int


class DeviceProducts:
    """The kernels of one device for torch tensors that lie on it; ``stream()`` is the one that torch enqueues on."""

    def __init__(self, kernels: Kernels, stream: Callable[[], Stream]) -> None:
        self._kernels, self._stream = kernels, stream

    def takes(self, x: Tensor, group_size: int) -> bool:
        """Whether these activations and groups are for the kernels: f16 or bf16, without a gradient."""
        wants_gradient = x.requires_grad and torch.is_grad_enabled()
        return x.dtype in ACTIVATIONS and group_size in GROUP_SIZES and x.numel() > 0 and not wants_gradient

    def pack(self, integers: IntWeight, bias: Tensor | None, device: torch.device) -> PackedLinear | None:
        """The weight in tiles, and the bias in f32, on ``device``; None with a warning for scales that do not fit."""
        copies = integers.bits // 4
        try:
            weight = split_int8(integers) if copies > 1 else integers
        except ValueError as problem:
            _logger.warning("weights of eight bits are dequantised for each use: %s", problem)
            return None

        def upload(values: npt.NDArray[Any], dtype: DType) -> DeviceArray:
            signed = (
                values.view(np.int32) if dtype == "u32" else values
            )  # the same bits; torch knows few unsigned types
            return _array(torch.from_numpy(signed).to(device), dtype)

        packed = upload_t16(pack(weight, "t16"), *weight.shape, weight.group_size, upload)
        wide = None if bias is None else _array(bias.detach().to(device, torch.float32).contiguous(), "f32")
        return PackedLinear(packed, wide, copies)

    def linear(self, x: Tensor, packed: PackedLinear) -> Tensor:
        """x · Wᵀ + b in the dtype of x [..., K], sums in f32; a row's result does not depend on the others'."""
        tokens = x.detach().reshape(-1, x.shape[-1]).contiguous()
        if packed.copies > 1:
            tokens = tokens.repeat(1, packed.copies)
        if tokens.data_ptr() % ALIGNMENT:
            tokens = tokens.clone()
        y = torch.empty(len(tokens), packed.weight.n, dtype=x.dtype, device=x.device)
        product = gemv if len(tokens) <= MAX_STEP_TOKENS else gemm
        dtype = ACTIVATIONS[x.dtype]
        given, wanted = _array(tokens, dtype), _array(y, dtype)
        product(self._kernels, self._stream(), given, packed.weight, wanted, bias=packed.bias)
        return y.view(*x.shape[:-1], packed.weight.n)


def products_for(x: Tensor) -> DeviceProducts | None:
    """The kernels for a tensor on a CUDA device; None for one elsewhere, and with a warning where there are none."""
    return products_on(x.device.index) if x.is_cuda else None


@lru_cache(maxsize=16)
def products_on(ordinal: int) -> DeviceProducts | None:
    """The kernels of a GPU, in torch's own context, kept for the process; None when it has no driver or no code."""
    try:
        device = open_device("auto", ordinal)
        kernels = Kernels(device)
        kernels.load(*FIRST_ENTRIES)
    except KernelError as problem:
        _logger.warning("int4 weights are dequantised for each use: %s%s", problem.message, _hint(problem))
        return None
    streams: dict[int, Stream] = {}

    def current() -> Stream:
        handle = torch.cuda.current_stream(ordinal).cuda_stream
        if handle not in streams:
            streams[handle] = device.wrap_stream(handle)
        return streams[handle]

    return DeviceProducts(kernels, current)


def _hint(problem: KernelError) -> str:
    return f" ({problem.hint})" if problem.hint else ""


def _array(tensor: Tensor, dtype: DType) -> DeviceArray:
    """A contiguous tensor as the kernels take it; it stays alive with the array."""
    return DeviceArray(tensor.data_ptr(), tuple(tensor.shape), dtype, tensor)
