"""Sampling against transformers' processors, a chi-square test of the draws, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest

from runtime.errors import EngineError, InputError
from runtime.sampling import Sampler
from runtime.types import GenerationParams

VOCAB = 200


def logits_of(seed: int, vocab: int = VOCAB) -> np.ndarray:
    return np.random.default_rng(seed).normal(0.0, 3.0, vocab).astype(np.float32)


def softmax(scores: np.ndarray) -> np.ndarray:
    weights = np.exp(scores.astype(np.float64) - scores.max())
    return weights / weights.sum()


CASES = [
    GenerationParams(temperature=0.7),
    GenerationParams(temperature=1.0, top_k=7),
    GenerationParams(temperature=1.0, top_p=0.6),
    GenerationParams(temperature=1.0, min_p=0.2),
    GenerationParams(temperature=1.3, top_k=50, top_p=0.9, min_p=0.01),
    GenerationParams(temperature=0.4, repetition_penalty=1.4, top_k=20),
    GenerationParams(temperature=2.0, repetition_penalty=0.8, top_p=0.95),
]


@pytest.mark.parametrize("params", CASES, ids=repr)
def test_filtered_distribution_equals_transformers(params: GenerationParams) -> None:
    torch = pytest.importorskip("torch")
    from transformers import GenerationConfig, GenerationMixin

    class Host(GenerationMixin):  # _get_logits_processor is the list that generate() itself builds
        config = type("C", (), {"is_encoder_decoder": False})()

    config = GenerationConfig(
        do_sample=True,
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        min_p=params.min_p or None,
        repetition_penalty=params.repetition_penalty,
        eos_token_id=None,
    )
    prompt = [3, 3, 17, 190]
    for seed in range(20):
        logits = logits_of(seed)
        processors = Host()._get_logits_processor(
            config, input_ids_seq_length=len(prompt), prefix_allowed_tokens_fn=None, logits_processor=[], device="cpu"
        )
        expected = processors(torch.tensor([prompt]), torch.from_numpy(logits)[None]).softmax(-1)[0].numpy()
        got = softmax(Sampler(params, VOCAB, prompt).filtered(logits))
        np.testing.assert_array_equal(got > 0, expected > 0)
        np.testing.assert_allclose(got, expected, atol=1e-6)


def test_nucleus_wider_than_the_first_look_equals_a_full_sort() -> None:
    logits = np.random.default_rng(0).normal(0.0, 0.1, 6000).astype(np.float32)
    got = softmax(Sampler(GenerationParams(temperature=1.0, top_p=0.7), 6000).filtered(logits)) > 0
    order = np.argsort(-logits)
    mass = np.cumsum(softmax(logits)[order])
    expected = np.zeros(6000, bool)
    expected[order[: int(np.searchsorted(mass, 0.7)) + 1]] = True
    assert got.sum() > 1024
    np.testing.assert_array_equal(got, expected)


def test_draws_follow_the_distribution_by_chi_square() -> None:
    params = GenerationParams(temperature=0.8, top_k=12, seed=11)
    logits = logits_of(5, 40)
    sampler = Sampler(params, 40)
    draws = 20_000
    counts = np.bincount([sampler.sample(logits)[0] for _ in range(draws)], minlength=40)
    probabilities = softmax(Sampler(params, 40).filtered(logits))
    kept = probabilities * draws >= 5
    rare = ~kept
    statistic = float((((counts - probabilities * draws) ** 2)[kept] / (probabilities * draws)[kept]).sum())
    expected_rare = probabilities[rare].sum() * draws
    statistic += (counts[rare].sum() - expected_rare) ** 2 / max(expected_rare, 1.0)
    assert counts[probabilities == 0].sum() == 0
    # 12 tokens at most: 11 degrees of freedom, of which 31.3 is the 0.1 % quantile.
    assert statistic < 31.3


def test_same_seed_gives_same_tokens_and_another_seed_does_not() -> None:
    rows = [logits_of(seed) for seed in range(30)]

    def tokens(seed: int | None) -> list[int]:
        sampler = Sampler(GenerationParams(temperature=1.0, seed=seed), VOCAB)
        return [sampler.sample(row)[0] for row in rows]

    assert tokens(7) == tokens(7)
    assert tokens(7) != tokens(8)
    assert tokens(None) != tokens(None)


def test_steps_of_one_seed_draw_independently() -> None:
    sampler = Sampler(GenerationParams(temperature=1.0, seed=3), VOCAB)
    flat = np.zeros(VOCAB, np.float32)
    assert len({sampler.sample(flat)[0] for _ in range(50)}) > 30


def test_greedy_takes_the_best_token_and_reports_the_models_probability() -> None:
    logits = logits_of(1)
    token, logprob = Sampler(GenerationParams(), VOCAB).sample(logits)
    assert token == int(logits.argmax())
    assert logprob == pytest.approx(math.log(softmax(logits)[token]), abs=1e-6)


def test_logprob_ignores_filters_temperature_penalty_and_mask() -> None:
    logits = logits_of(2)
    allowed = np.zeros(VOCAB, bool)
    allowed[[4, 9]] = True
    params = GenerationParams(temperature=0.3, top_k=1, repetition_penalty=1.5, seed=1)
    token, logprob = Sampler(params, VOCAB, [4]).sample(logits, allowed)
    assert token in (4, 9)
    assert logprob == pytest.approx(math.log(softmax(logits)[token]), abs=1e-6)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_allowed_mask_is_obeyed_by_greedy_and_by_draws(temperature: float) -> None:
    allowed = np.zeros(VOCAB, bool)
    allowed[[5, 6]] = True
    sampler = Sampler(GenerationParams(temperature=temperature, seed=1), VOCAB)
    assert all(sampler.sample(logits_of(seed), allowed)[0] in (5, 6) for seed in range(50))


def test_empty_or_misshapen_mask_is_refused() -> None:
    sampler = Sampler(GenerationParams(), VOCAB)
    with pytest.raises(InputError, match="with 0 tokens"):
        sampler.sample(logits_of(0), np.zeros(VOCAB, bool))
    with pytest.raises(InputError, match=r"\(3,\)"):
        sampler.sample(logits_of(0), np.ones(3, bool))


def test_repetition_penalty_counts_prompt_and_generated_tokens() -> None:
    logits = np.array([1.0, 0.9, 0.8, -5.0], np.float32)
    sampler = Sampler(GenerationParams(repetition_penalty=2.0), 4, prompt_ids=[0, 99_999, -200])
    assert [sampler.sample(logits)[0] for _ in range(2)] == [1, 2]


def test_tiny_temperature_is_greedy_and_does_not_overflow() -> None:
    sampler = Sampler(GenerationParams(temperature=1e-30, seed=0), VOCAB)
    assert sampler.sample(logits_of(4))[0] == int(logits_of(4).argmax())


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_an_engine_error(bad: float) -> None:
    logits = logits_of(0)
    logits[17] = bad
    with pytest.raises(EngineError, match="1 of 200 logits are not finite at step 0") as caught:
        Sampler(GenerationParams(), VOCAB).sample(logits)
    assert caught.value.hint is not None


def test_logits_that_are_all_minus_infinity_or_misshapen_are_an_engine_error() -> None:
    sampler = Sampler(GenerationParams(), VOCAB)
    with pytest.raises(EngineError, match="not finite"):
        sampler.sample(np.full(VOCAB, -np.inf, np.float32))
    with pytest.raises(EngineError, match=r"\(1, 200\)"):
        sampler.sample(logits_of(0)[None])


@pytest.mark.parametrize(
    ("params", "name"),
    [
        (GenerationParams(temperature=-0.1), "temperature"),
        (GenerationParams(temperature=math.nan), "temperature"),
        (GenerationParams(top_p=0.0), "top_p"),
        (GenerationParams(top_p=1.1), "top_p"),
        (GenerationParams(min_p=-1.0), "min_p"),
        (GenerationParams(repetition_penalty=0.0), "repetition_penalty"),
        (GenerationParams(top_k=-1), "top_k"),
        (GenerationParams(top_k=True), "top_k"),
        (GenerationParams(max_new_tokens=0), "max_new_tokens"),
        (GenerationParams(max_new_tokens=1.5), "max_new_tokens"),  # type: ignore[arg-type]
        (GenerationParams(seed=-1), "seed"),
        (GenerationParams(seed=2**64), "seed"),
        (GenerationParams(stop="end"), "stop"),  # type: ignore[arg-type]
        (GenerationParams(stop=("",)), "stop"),
        (GenerationParams(stop=("a",) * 17), "stop"),
        (GenerationParams(temperature="hot"), "temperature"),  # type: ignore[arg-type]
    ],
)
def test_parameters_out_of_range_are_refused_by_name(params: GenerationParams, name: str) -> None:
    with pytest.raises(InputError, match=name):
        Sampler(params, VOCAB)


def test_numpy_numbers_are_numbers() -> None:
    params = GenerationParams(temperature=np.float32(0.5), top_k=np.int64(3), seed=np.int64(1))  # type: ignore[arg-type]
    assert 0 <= Sampler(params, VOCAB).sample(logits_of(0))[0] < VOCAB


def test_draws_tell_what_a_device_needs_to_go_on() -> None:
    logits = np.zeros(6, np.float32)
    plain = Sampler(GenerationParams(temperature=1.0), 6)
    before = plain.draws()
    plain.sample(logits)
    assert (before.step, plain.draws().step, plain.draws().seen) == (0, 1, None)
    assert plain.draws().seed == before.seed  # drawn once, although the parameters name none
    sampler = Sampler(GenerationParams(repetition_penalty=2.0, seed=3), 6, [1, 99])
    token, _ = sampler.sample(logits)
    draws = sampler.draws()
    assert draws.seen is not None and set(np.flatnonzero(draws.seen)) == {1, token}
    sampler.sample(logits)
    assert set(np.flatnonzero(draws.seen)) == {1, token}  # a copy: it stands still
