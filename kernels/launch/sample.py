"""Launches the choice of the next token (csrc/sample.cu): the best one, or a draw from filtered logits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kernels.arrays import DeviceArray, check_array
from kernels.driver.protocol import Stream
from kernels.errors import ArrayError
from kernels.kernel import Kernel
from kernels.launch.kv import check_state
from kernels.reference import sample as reference
from kernels.state import HEAD_PARTIAL, MAX_STEP_TOKENS, RING_ENTRY, SAMPLE_PARAMS

if TYPE_CHECKING:
    from kernels.loading import Kernels

THREADS = 1024
MAX_VOCAB = 2**19  # sums of probabilities in steps of 2^-44 then stay below 2^64
SEEN_BITS = 32


def sample_greedy(
    kernels: Kernels,
    stream: Stream,
    partials: DeviceArray,
    state: DeviceArray,
    ring: DeviceArray,
    *,
    advance: int | None = None,
) -> None:
    """Choose the token with the largest logit, of equal ones the lowest id, for each of the step's M tokens.

    partials u8 [tiles, M, 16] (HeadPartial, from head_argmax); state u8 [64]; ring u8 [capacity, 16] in memory that
    the host sees. Entry (state.step + m) % capacity gets the choice after token m and the natural logarithm of its
    probability; state.token[0] is the last choice, state.step grows by M and state.pos by ``advance`` (None: M). NaN,
    +inf or nothing but -inf sets STATUS_BAD_LOGITS and gives the token -1 with NaN. Raises ArrayError.
    """
    check_array("partials", partials, "u8", (None, None, HEAD_PARTIAL.itemsize))
    tiles, tokens, _ = partials.shape
    if tokens > MAX_STEP_TOKENS or tiles * 16 > MAX_VOCAB:
        raise ArrayError(
            f"partials of {tiles} tiles for {tokens} tokens, at most {MAX_VOCAB // 16} and {MAX_STEP_TOKENS}"
        )
    _check_state_and_ring(state, ring)
    threads = min(-(-tiles // 32) * 32, THREADS)
    positions = _positions(tokens if advance is None else advance)
    kernels.launch(
        "sample_greedy",
        (1, 1, 1),
        (threads, 1, 1),
        0,
        stream,
        "PiiPPii",
        *(partials.ptr, tiles, tokens, state.ptr, ring.ptr, ring.shape[0], positions),
    )


def sample_filtered(
    kernels: Kernels,
    stream: Stream,
    logits: DeviceArray,
    params: DeviceArray,
    seen: DeviceArray,
    state: DeviceArray,
    ring: DeviceArray,
    scratch: DeviceArray,
    *,
    advance: int | None = None,
) -> None:
    """Draw a token: repetition penalty, temperature, top-k, top-p, min-p, then Philox(key=seed, counter=state.step).

    logits f32 [V], V up to 2^19; params u8 [40] (SampleParams; temperature 0 takes the best token after the penalty);
    seen u32 [ceil(V / 32)], a bit per token that counts for the penalty, in and out; scratch u32 [V]; the others as in
    :func:`sample_greedy`, ``advance`` None: 1. Filters and numbers are those of transformers and numpy: the token is
    the one that ``Generator(Philox(key=seed, counter=step)).random()`` picks from the exact probabilities, unless
    that number lies within V · 2^-43 of a boundary (reference.sample). logprob: under the model itself, no filter in
    it. Raises ArrayError. Sources: Keskar 2019, Holtzman 2019, Salmon 2011.
    """
    check_array("logits", logits, "f32", (None,), alignment=4)
    vocab = logits.shape[0]
    if vocab > MAX_VOCAB:
        raise ArrayError(f"logits of {vocab} tokens, at most {MAX_VOCAB}")
    check_array("params", params, "u8", (SAMPLE_PARAMS.itemsize,))
    check_array("seen", seen, "u32", (-(-vocab // SEEN_BITS),), alignment=4)
    check_array("scratch", scratch, "u32", (vocab,), alignment=4)
    _check_state_and_ring(state, ring)
    positions = _positions(1 if advance is None else advance)
    kernels.launch(
        "sample_filtered",
        (1, 1, 1),
        (THREADS, 1, 1),
        0,
        stream,
        "PiPPPPiPi",
        *(logits.ptr, vocab, params.ptr, seen.ptr, state.ptr, ring.ptr, ring.shape[0], scratch.ptr, positions),
    )


def _check_state_and_ring(state: DeviceArray, ring: DeviceArray) -> None:
    check_state(state)
    check_array("ring", ring, "u8", (None, RING_ENTRY.itemsize))


def _positions(advance: int) -> int:
    if advance < 0:
        raise ArrayError(f"advance is {advance}, expected at least 0")
    return advance


KERNELS = (
    Kernel("sample_greedy", "sample.cu", ("sample_greedy",), sample_greedy, reference.sample_greedy),
    Kernel("sample_filtered", "sample.cu", ("sample_filtered",), sample_filtered, reference.sample_filtered),
)
