"""Launches the LM head for 1..8 tokens: all logits, or what a greedy sampler needs of them (csrc/head.cu)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kernels.arrays import DeviceArray, check_array
from kernels.driver.protocol import Stream
from kernels.kernel import Kernel
from kernels.launch.gemv import check_tokens, launch_tiles
from kernels.launch.products import entries
from kernels.launch.weights import T16Weight
from kernels.reference import head as reference
from kernels.state import HEAD_PARTIAL

if TYPE_CHECKING:
    from kernels.loading import Kernels


def head_argmax(
    kernels: Kernels, stream: Stream, x: DeviceArray, w: T16Weight, partials: DeviceArray, *, first_id: int = 0
) -> None:
    """Of every tile of 16 ids: the largest logit, its id (the lowest on ties) and the sum of exp(logit - max).

    x T [M, K], M 1..8, T f16 or bf16; w.n is the vocabulary, rows of the padding neither win nor count; partials u8
    [tiles, M, 16] (HeadPartial). The id is -1 where a logit is NaN or +inf; max and sum are 0 then. first_id: the id
    of the weight's first row, where it is a piece of a larger head. Raises ArrayError.
    """
    tokens = check_tokens(x, w)
    check_array("partials", partials, "u8", (w.tiles, tokens, HEAD_PARTIAL.itemsize))
    launch_tiles(kernels, stream, "head_argmax", x, w, "Piiii", partials.ptr, first_id, tokens, w.n, w.k)


def head_logits(kernels: Kernels, stream: Stream, x: DeviceArray, w: T16Weight, logits: DeviceArray) -> None:
    """logits f32 [M, V] = x · Wᵀ with V = w.n; otherwise as :func:`head_argmax`, from the same sums bit for bit."""
    tokens = check_tokens(x, w)
    check_array("logits", logits, "f32", (tokens, w.n))
    launch_tiles(kernels, stream, "head_logits", x, w, "Piii", logits.ptr, tokens, w.n, w.k)


KERNELS = (
    Kernel("head_argmax", "head.cu", entries("head_argmax"), head_argmax, reference.head_argmax),
    Kernel("head_logits", "head.cu", entries("head_logits"), head_logits, reference.head_logits),
)
