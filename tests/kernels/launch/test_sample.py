"""Sampling on the emulator: the runtime's own choices from the same logits, numpy's random numbers, damaged logits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.cases.sample import cases, head_partials, packed, parameters
from kernels.errors import ArrayError
from kernels.kernel import Case
from kernels.launch.sample import KERNELS, MAX_VOCAB, sample_filtered, sample_greedy
from kernels.loading import Kernels
from kernels.reference import sample as reference
from kernels.selftest.running import run_case
from kernels.state import DECODE_STATE, RING_ENTRY, STATUS_BAD_LOGITS
from kernels.workbench import Workbench
from runtime.sampling import Sampler
from runtime.types import GenerationParams

F32 = npt.NDArray[np.float32]
CASES = list(cases())
CAPACITY = 3


@dataclass
class Chosen:
    """One entry of the ring, and what the launch left behind."""

    token: int
    logprob: float
    status: int
    sequence: int
    state: npt.NDArray[Any]
    seen: npt.NDArray[np.bool_]


def choose(bench: Workbench, logits: F32, seen: Any = (), step: int = 0, **setting: Any) -> Chosen:
    """Run sample_filtered once."""
    vocab = len(logits)
    marks = np.zeros(vocab, np.bool_)
    marks[list(seen)] = True
    state, ring = bench.upload(state_at(step), "u8"), bench.empty((CAPACITY, 16), "u8")
    bits = bench.upload(packed(marks), "u32")
    arrays = (bench.upload(logits, "f32"), bench.upload(parameters(**setting), "u8"), bits, state, ring)
    sample_filtered(bench.kernels, bench.stream, *arrays, bench.empty((vocab,), "u32"))
    entry = bench.download(ring).reshape(-1).view(RING_ENTRY)[step % CAPACITY]
    after = np.unpackbits(bench.download(bits).view(np.uint8), bitorder="little")[:vocab].astype(np.bool_)
    found = bench.download(state).view(DECODE_STATE)[0]
    return Chosen(*(entry[name].item() for name in ("token", "logprob", "status", "sequence")), found, after)


def state_at(step: int, pos: int = 5) -> npt.NDArray[np.uint8]:
    state = np.zeros(1, DECODE_STATE)
    state["step"], state["pos"] = step, pos
    return state.view(np.uint8)


def runtime_choice(logits: F32, seen: Any, step: int, **setting: Any) -> tuple[int, float]:
    """The runtime's own sampler at ``step`` of an answer."""
    sampler = Sampler(GenerationParams(**setting), len(logits), seen)
    sampler._step = step
    return sampler.sample(logits)


@pytest.mark.usefixtures("schedule")
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.entry} {case.name}")
def test_choices_are_the_references_in_every_schedule(kernels: Kernels, case: Case) -> None:
    assert run_case(kernels, case) <= 1.0
    assert kernels.launched == {case.entry: 1}


def test_the_cases_cover_every_entry() -> None:
    assert {case.entry for case in CASES} == {entry for kernel in KERNELS for entry in kernel.entries}


@given(seed=st.integers(0, 2**64 - 1), step=st.integers(0, 2**31 - 2))
def test_the_references_random_numbers_are_numpys(seed: int, step: int) -> None:
    numpys = np.random.Generator(np.random.Philox(key=seed, counter=step)).random()
    assert reference.philox_uniform(seed, step) == numpys


@settings(max_examples=60)
@given(seed=st.integers(0, 2**64 - 1), step=st.integers(0, 2**31 - 2))
def test_the_kernels_random_numbers_are_numpys_to_the_token(lasting_kernels: Kernels, seed: int, step: int) -> None:
    """65536 equal logits: the token says the number's first 16 bits."""
    numpys = np.random.Generator(np.random.Philox(key=seed, counter=step)).random()
    with Workbench(lasting_kernels) as bench:
        assert choose(bench, np.zeros(65536, np.float32), step=step, seed=seed).token == int(numpys * 65536)


def rows(rng: np.random.Generator) -> F32:
    """Logits of many kinds: peaked, flat, rounded so that many are equal, with tokens that cannot come."""
    vocab = int(rng.choice([1, 2, 31, 33, 100, 512, 1023, 1025]))
    logits = (rng.standard_normal(vocab) * rng.choice([1e-3, 1.0, 4.0, 30.0])).astype(np.float32)
    kind = rng.integers(5)
    if kind == 1:
        logits = np.round(logits)
    if kind == 2:
        logits[rng.random(vocab) < 0.5] = -np.inf
        logits[rng.integers(vocab)] = 1.0
    if kind == 3:
        logits[:] = -np.inf
        logits[rng.integers(vocab)] = -7.0
    return logits


def setting_of(rng: np.random.Generator) -> dict[str, Any]:
    return {
        "temperature": float(rng.choice([0.0, 1e-3, 0.3, 0.7, 1.0, 2.5])),
        "top_p": float(rng.choice([1.0, 0.999, 0.9, 0.5, 0.01])),
        "min_p": float(rng.choice([0.0, 0.05, 0.3, 1.0])),
        "top_k": int(rng.choice([0, 1, 5, 40, 1000])),
        "repetition_penalty": float(rng.choice([1.0, 1.1, 0.8])),
        "seed": int(rng.integers(2**63)),
    }


def test_choices_are_the_runtimes_from_the_same_logits(bench: Workbench) -> None:
    """Where the random number or a filter's edge lies closer to a boundary than the derived bound, both may differ."""
    rng = np.random.default_rng(42)
    uncertain = 0
    for step in range(600):
        logits, setting = rows(rng), setting_of(rng)
        seen = np.flatnonzero(rng.random(len(logits)) < 0.3)
        with Workbench(bench.kernels) as inner:
            chosen = choose(inner, logits, seen, step, **setting)
        token, logprob = runtime_choice(logits, seen, step, **setting)
        marks = np.isin(np.arange(len(logits)), seen)
        if reference.sample_filtered(logits, marks, step, **setting).margin < reference.margin_bound(len(logits)):
            uncertain += 1
            continue
        assert chosen.token == token, (step, setting)
        assert abs(chosen.logprob - logprob) <= reference.logprob_bound(np.array([logprob]))[0]
    assert uncertain <= 30  # edges that lie on a boundary by construction, as equal logits cut in half


def test_a_draw_a_hair_from_a_boundary_falls_on_its_exact_side(bench: Workbench) -> None:
    """Two tokens, the second so probable that the boundary is within an ulp of its logit from the random number."""
    checked = 0
    for seed in range(400):
        uniform = reference.philox_uniform(seed, 0)
        if uniform < 0.9:
            continue
        near = np.float32(np.log((1.0 - uniform) / uniform))
        for logit in (np.nextafter(near, np.float32(0)), near, np.nextafter(near, np.float32(-99))):
            logits = np.array([0.0, logit], np.float32)
            draw = reference.sample_filtered(logits, np.zeros(2, np.bool_), 0, seed=seed)
            if draw.margin > reference.margin_bound(2):
                with Workbench(bench.kernels) as inner:
                    assert choose(inner, logits, seed=seed).token == draw.token
                checked += 1
    assert checked > 80


@pytest.mark.parametrize("spread", [0.5, 4.0])
def test_a_vocabulary_of_qwens_size_is_sampled(bench: Workbench, spread: float) -> None:
    rng = np.random.default_rng(7)
    logits = (rng.standard_normal(152_064) * spread).astype(np.float32)
    setting = {"temperature": 0.8, "top_p": 0.95, "repetition_penalty": 1.1, "seed": 11}
    chosen = choose(bench, logits, range(0, 152_064, 50), 3, **setting)
    token, logprob = runtime_choice(logits, range(0, 152_064, 50), 3, **setting)
    assert chosen.token == token
    assert abs(chosen.logprob - logprob) <= reference.logprob_bound(np.array([logprob]))[0]


def test_draws_have_the_distribution_of_the_logits_and_differ_every_step(bench: Workbench) -> None:
    """Pearson's chi-square over 1200 steps; 1 in 10000 honest samplers would exceed the limit for 7 tokens."""
    probabilities = np.array([0.3, 0.25, 0.15, 0.1, 0.1, 0.06, 0.04])
    logits = np.log(probabilities).astype(np.float32)
    counts = np.zeros(7)
    tokens = []
    for step in range(1200):
        with Workbench(bench.kernels) as inner:
            tokens.append(choose(inner, logits, step=step, seed=5).token)
    counts = np.bincount(tokens, minlength=7)
    assert (((counts - 1200 * probabilities) ** 2) / (1200 * probabilities)).sum() < 27.9
    assert tokens[:600] != tokens[600:]
    assert 0.6 < np.mean(np.array(tokens[1:]) != tokens[:-1]) < 0.95


def test_of_equal_scores_the_lowest_ids_are_in_the_nucleus(bench: Workbench) -> None:
    """Half of 100 equal tokens: ids 0..49, whatever the draw."""
    logits = np.zeros(100, np.float32)
    for step in range(40):
        with Workbench(bench.kernels) as inner:
            token = choose(inner, logits, step=step, top_p=0.5).token
        assert token < 50
        assert token == runtime_choice(logits, (), step, temperature=1.0, top_p=0.5, seed=0)[0]


def test_top_k_keeps_all_that_are_equal_to_the_last(bench: Workbench) -> None:
    logits = np.array([1.0, 3.0, 2.0, 2.0, 2.0, 0.0], np.float32)
    tokens = set()
    for step in range(60):
        with Workbench(bench.kernels) as inner:
            tokens.add(choose(inner, logits, step=step, top_k=2, temperature=5.0).token)
    assert tokens == {1, 2, 3, 4}


@pytest.mark.parametrize("setting", [{}, {"top_k": 2}, {"top_p": 0.5}, {"temperature": 0.0}])
def test_logits_without_probabilities_are_reported(bench: Workbench, setting: dict[str, Any]) -> None:
    for place, value in ((0, np.nan), (7, -np.nan), (69, np.inf), (slice(None), -np.inf)):
        logits = np.linspace(-1, 1, 70).astype(np.float32)
        logits[place] = value
        chosen = choose(bench, logits, step=4, **setting)
        assert (chosen.token, chosen.status, chosen.sequence) == (-1, STATUS_BAD_LOGITS, 5)
        assert np.isnan(chosen.logprob)
        assert chosen.state["status"] == STATUS_BAD_LOGITS
        assert not chosen.seen.any()


def test_a_penalty_that_overflows_is_reported(bench: Workbench) -> None:
    logits = np.array([3e38, 1.0], np.float32)
    for temperature in (0.0, 1.0):
        chosen = choose(bench, logits, [0], repetition_penalty=0.1, temperature=temperature)
        assert (chosen.token, chosen.status) == (-1, STATUS_BAD_LOGITS)


def test_the_state_moves_on_and_the_token_counts_as_seen(bench: Workbench) -> None:
    chosen = choose(bench, np.array([0.0, 9.0, 1.0], np.float32), [0], 7, temperature=0.0)
    assert (chosen.token, chosen.sequence, chosen.status) == (1, 8, 0)
    assert [chosen.state[name] for name in ("step", "pos", "status")] == [8, 6, 0]
    assert chosen.state["token"][0] == 1
    assert chosen.seen.tolist() == [True, True, False]


@pytest.mark.parametrize(("tokens", "advance", "pos"), [(1, None, 6), (4, None, 9), (1, 70, 75), (3, 0, 5)])
def test_greedy_publishes_every_token_of_a_step(bench: Workbench, tokens: int, advance: int | None, pos: int) -> None:
    logits = np.random.default_rng(tokens).standard_normal((tokens, 40_000)).astype(np.float32)
    partials = head_partials(logits)
    state, ring = bench.upload(state_at(2), "u8"), bench.empty((8, 16), "u8")
    array = bench.upload(partials.view(np.uint8).reshape(*partials.shape, 16), "u8")
    sample_greedy(bench.kernels, bench.stream, array, state, ring, advance=advance)
    entries = bench.download(ring).reshape(-1).view(RING_ENTRY)[2 : 2 + tokens]
    assert entries["token"].tolist() == logits.argmax(axis=1).tolist()
    assert entries["sequence"].tolist() == list(range(3, 3 + tokens))
    found = bench.download(state).view(DECODE_STATE)[0]
    assert [found[name] for name in ("step", "pos")] == [2 + tokens, pos]
    assert found["token"][0] == logits[-1].argmax()


def test_greedy_takes_the_lowest_id_of_equal_logits_and_minus_zero_for_zero(bench: Workbench) -> None:
    logits = np.full((2, 64), -1.0, np.float32)
    logits[0, [60, 17, 33]] = 2.0
    logits[1, [9, 41]] = [-0.0, 0.0]
    partials = head_partials(logits)[::-1].copy()  # the order of tiles does not matter either
    state, ring = bench.upload(state_at(0), "u8"), bench.empty((2, 16), "u8")
    sample_greedy(
        bench.kernels, bench.stream, bench.upload(partials.view(np.uint8).reshape(4, 2, 16), "u8"), state, ring
    )
    assert bench.download(ring).reshape(-1).view(RING_ENTRY)["token"].tolist() == [17, 9]


def test_a_status_that_stands_already_is_handed_on(bench: Workbench) -> None:
    state = state_at(0).view(DECODE_STATE).copy()
    state["status"] = 4
    partials = head_partials(np.array([[1.0, np.nan]], np.float32)).view(np.uint8).reshape(1, 1, 16)
    held, ring = bench.upload(state.view(np.uint8), "u8"), bench.empty((1, 16), "u8")
    sample_greedy(bench.kernels, bench.stream, bench.upload(partials, "u8"), held, ring)
    assert bench.download(ring).reshape(-1).view(RING_ENTRY)["status"][0] == 4 | STATUS_BAD_LOGITS


def test_what_the_kernels_cannot_take_is_refused(bench: Workbench) -> None:
    state, ring, partials = bench.empty((64,), "u8"), bench.empty((2, 16), "u8"), bench.empty((3, 1, 16), "u8")
    greedy = [
        ({"partials": bench.empty((3, 9, 16), "u8")}, "for 9 tokens"),
        ({"partials": replace(partials, shape=(MAX_VOCAB, 1, 16))}, "at most 32768"),
        ({"partials": replace(partials, shape=(0, 1, 16))}, "partials has the shape"),
        ({"partials": replace(partials, ptr=partials.ptr + 4)}, "partials lies at"),
        ({"state": bench.empty((32,), "u8")}, "state has the shape"),
        ({"ring": bench.empty((2, 8), "u8")}, "ring has the shape"),
        ({"advance": -1}, "advance is -1"),
    ]
    for change, message in greedy:
        with pytest.raises(ArrayError, match=message):
            sample_greedy(bench.kernels, bench.stream, **{"partials": partials, "state": state, "ring": ring, **change})
    good = {"logits": bench.empty((70,), "f32"), "params": bench.empty((40,), "u8"), "seen": bench.empty((3,), "u32")}
    good |= {"state": state, "ring": ring, "scratch": bench.empty((70,), "u32")}
    filtered = [
        ({"logits": bench.empty((70,), "f16")}, "logits is f16"),
        ({"logits": replace(good["logits"], shape=(0,))}, "logits has the shape"),
        ({"logits": replace(good["logits"], shape=(MAX_VOCAB + 1,))}, "at most 524288"),
        ({"params": bench.empty((32,), "u8")}, "params has the shape"),
        ({"seen": bench.empty((2,), "u32")}, "seen has the shape"),
        ({"scratch": bench.empty((69,), "u32")}, "scratch has the shape"),
        ({"scratch": replace(good["scratch"], ptr=good["scratch"].ptr + 2)}, "scratch lies at"),
    ]
    for change, message in filtered:
        with pytest.raises(ArrayError, match=message):
            sample_filtered(bench.kernels, bench.stream, **{**good, **change})
    assert not bench.kernels.launched
