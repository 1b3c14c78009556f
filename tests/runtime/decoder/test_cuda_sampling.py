"""Tokens that the device chooses: those of the host's sampler, read one step behind, and what ends them."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")

from kernels.driver.opening import open_device
from runtime.decoder.cuda import CudaDecoder, CudaDecoderFiles
from runtime.decoder.cuda.sampling import RING_ENTRIES
from runtime.errors import EngineError, PromptError
from runtime.sampling import Sampler
from runtime.types import GenerationParams
from tests.runtime.decoder.cuda_bundles import SMALL, FailingDevice, needs_compiler, opened, small_files

LENGTH = 64
PROMPT = [3, 80, 150, 9, 9]
PARAMS = {
    "greedy": GenerationParams(),
    "greedy with penalty": GenerationParams(repetition_penalty=1.5),
    "temperature": GenerationParams(temperature=1.3, seed=5),
    "all filters": GenerationParams(
        temperature=0.9, top_k=50, top_p=0.9, min_p=0.02, repetition_penalty=1.2, seed=2**64 - 1
    ),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> CudaDecoderFiles:
    needs_compiler()
    return small_files(tmp_path_factory.mktemp("decoder"), max_seq_len=LENGTH)


@pytest.fixture(scope="module")
def shared(files: CudaDecoderFiles) -> Iterator[CudaDecoder]:
    with opened(files, slots=2) as decoder:
        yield decoder


@pytest.fixture
def decoder(shared: CudaDecoder) -> CudaDecoder:
    """The decoder of this file: slot 0 holds the prompt, slot 1 nothing."""
    for slot in (0, 1):
        shared.truncate(slot, 0)
    shared.prefill(0, shared.embed(PROMPT))
    return shared


def begun(decoder: CudaDecoder, params: GenerationParams) -> tuple[Sampler, int]:
    """A sampler that has drawn the first token, and that token."""
    sampler = Sampler(params, SMALL.vocab, PROMPT)
    decoder.truncate(1, 0)
    return sampler, sampler.sample(decoder.prefill(1, decoder.embed(PROMPT))[0])[0]


@pytest.mark.parametrize("params", PARAMS.values(), ids=PARAMS.keys())
def test_tokens_and_logprobs_are_those_of_the_hosts_sampler(decoder: CudaDecoder, params: GenerationParams) -> None:
    """Longer than the ring, so that its places are used again."""
    sampler, token = begun(decoder, params)
    count = RING_ENTRIES + 6
    with closing(decoder.sampled(0, token, sampler.draws())) as following:
        found = list(islice(following, count))
    expected = []
    for _ in range(count):
        expected.append(sampler.sample(decoder.decode(1, [token])[0]))
        token = expected[-1][0]
    assert [one[0] for one in found] == [one[0] for one in expected]
    # Both sum exp over the vocabulary, the device in f32: V roundings of 2^-24 at most, and those of exp and log.
    np.testing.assert_allclose([one[1] for one in found], [one[1] for one in expected], atol=2e-5, rtol=0)
    assert len({one[0] for one in found}) > 3


def test_draws_are_not_moved_by_what_the_device_draws(decoder: CudaDecoder) -> None:
    sampler, token = begun(decoder, PARAMS["all filters"])
    runs = []
    for _ in range(2):
        decoder.truncate(0, len(PROMPT))
        with closing(decoder.sampled(0, token, sampler.draws())) as following:
            runs.append(list(islice(following, 5)))
    assert runs[0] == runs[1]


def test_length_counts_what_was_given_out_but_the_last_token(decoder: CudaDecoder) -> None:
    """The step that ran already when the answer ended is taken back."""
    sampler, token = begun(decoder, PARAMS["greedy"])
    following = decoder.sampled(0, token, sampler.draws())
    assert decoder.length(0) == len(PROMPT)
    given = [token]
    for count in range(1, 5):
        given.append(next(following)[0])
        assert decoder.length(0) == len(PROMPT) + count
    following.close()
    assert decoder.length(0) == len(PROMPT) + 4
    after = decoder.decode(0, given[-1:])
    decoder.truncate(1, 0)
    expected = [decoder.decode(1, [each]) for each in (*PROMPT, *given)][-1]
    np.testing.assert_array_equal(after, expected)


def test_at_most_one_step_is_in_vain(files: CudaDecoderFiles) -> None:
    device = FailingDevice(open_device("emulator"), EngineError("never"), "launch")
    with opened(files, device=device, graphs=False) as decoder:
        decoder.prefill(0, decoder.embed(PROMPT))
        sampler = Sampler(GenerationParams(), SMALL.vocab)
        with closing(decoder.sampled(0, 5, sampler.draws())) as following:
            next(following)
            launches = decoder._engine.kernels.launched["sample_greedy"]
            assert launches == 2  # the token that was read, and one step ahead
            next(following)
            assert decoder._engine.kernels.launched["sample_greedy"] == 3
    device.device.close()


def test_the_device_stops_at_the_end_of_the_cache(decoder: CudaDecoder) -> None:
    sampler, token = begun(decoder, PARAMS["greedy"])
    following = decoder.sampled(0, token, sampler.draws())
    taken = list(islice(following, LENGTH - len(PROMPT)))
    assert (len(taken), decoder.length(0)) == (LENGTH - len(PROMPT), LENGTH)
    with pytest.raises(PromptError, match=f"1 positions after {LENGTH} do not fit"):
        next(following)
    assert decoder.length(0) == LENGTH


@pytest.mark.parametrize("other", ["decode", "prefill", "truncate", "sampled", "copy_prefix"])
def test_another_call_ends_the_sampling(decoder: CudaDecoder, other: str) -> None:
    sampler, token = begun(decoder, PARAMS["greedy"])
    following = decoder.sampled(0, token, sampler.draws())
    first = next(following)
    decoder.truncate(1, 0)
    calls: dict[str, Any] = {
        "decode": lambda: decoder.decode(1, [4]),
        "prefill": lambda: decoder.prefill(1, decoder.embed([4])),
        "truncate": lambda: decoder.truncate(1, 0),
        "sampled": lambda: next(decoder.sampled(1, 4, sampler.draws())),
        "copy_prefix": lambda: decoder.copy_prefix(0, 1, 2),
    }
    calls[other]()
    with pytest.raises(EngineError, match="another call of the decoder"):
        next(following)
    assert decoder.length(0) == len(PROMPT) + 1
    gc.collect()  # an iterator that nobody closed ends with its last reference
    same = decoder.decode(0, [first[0]])
    assert np.isfinite(same).all()


def test_logits_that_are_not_finite_are_an_error_and_keep_the_slot(tmp_path: Path) -> None:
    """Weights that overflow the activations: infinities and NaN."""
    needs_compiler()

    def damage(weights: dict[str, Any]) -> None:
        weights["model.norm.weight"][:] = 3e38  # finite; the product of normed values with it is not, in f16

    with opened(small_files(tmp_path, max_seq_len=LENGTH, change=damage)) as decoder:
        decoder.prefill(0, decoder.embed(PROMPT))
        for params in (PARAMS["greedy"], PARAMS["all filters"]):
            following = decoder.sampled(0, 1, Sampler(params, SMALL.vocab).draws())
            with pytest.raises(EngineError, match="the logits are not finite") as caught:
                next(following)
            assert caught.value.hint is not None
            assert decoder.length(0) == len(PROMPT)
        with pytest.raises(EngineError, match="not finite"):
            Sampler(GenerationParams(), SMALL.vocab).sample(decoder.decode(0, [1])[0])
