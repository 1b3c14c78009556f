"""Tokens of an answer: drawn here, chosen on the device while nobody else runs, forced by a form."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime import startup
from runtime.clock import StageClock
from runtime.constraint import Constraint, Matcher
from runtime.decoder import SamplingDecoder
from runtime.errors import EngineError, InputError
from runtime.next_token import FORCED_AT_ONCE, Ahead
from runtime.prompt import EncodedPrompt
from runtime.request import Request
from runtime.sampling import Draws, Sampler
from runtime.slots import KvCache
from runtime.text_stream import Control
from runtime.types import Delta, GenerationParams
from tests.runtime.fakes import STOP_ID, VOCAB, FakeDecoder, Rig, ids_of, rig_of  # noqa: F401 - a fixture
from tests.runtime.test_session_parallel import Hold, forever

RigOf = Callable[..., Rig]


class Words:
    """A form: one of some texts. Forced wherever they agree; the answer may end after a shorter one."""

    def __init__(self, *texts: str) -> None:
        self.texts = [ids_of(text) for text in texts]
        self.asked: list[tuple[int, list[int], int]] = []
        self.made: list[Follower] = []

    def matcher(self, tokenizer_json: str, vocab: int, stop_ids: Sequence[int], budget: int) -> Follower:
        assert tokenizer_json.startswith("{") and len(tokenizer_json) > 1000
        self.asked.append((vocab, list(stop_ids), budget))
        if all(len(text) > budget for text in self.texts):
            raise InputError(f"no answer of this form fits into {budget} tokens")
        self.made.append(Follower([text for text in self.texts if len(text) <= budget], stop_ids))
        return self.made[-1]


class Follower:
    def __init__(self, texts: list[list[int]], stop_ids: Sequence[int]) -> None:
        self.texts, self.stop_ids, self.pushed = texts, list(stop_ids), []
        self.refuses: set[int] = set()
        self.refused: set[int] = set()

    def _next(self) -> set[int]:
        at = len(self.pushed)
        return {text[at] for text in self.texts if len(text) > at and text[:at] == self.pushed}

    @property
    def may_end(self) -> bool:
        return self.pushed in self.texts

    @property
    def done(self) -> bool:
        return self.may_end and not self._next()

    def allowed(self) -> np.ndarray:
        assert not self.done
        mask = np.zeros(VOCAB, np.bool_)
        mask[list(self._next() - self.refused)] = True
        mask[self.stop_ids] = self.may_end
        assert mask.any()
        return mask

    def push(self, token_id: int) -> bool:
        assert token_id in self._next() - self.refused
        if token_id in self.refuses:
            self.refused.add(token_id)
            return False
        self.refused.clear()
        self.pushed.append(token_id)
        return True

    def forced(self) -> list[int]:
        ids, kept = [], list(self.pushed)
        while len(self._next()) == 1 and not self.may_end:
            ids.append(self._next().pop())
            self.pushed.append(ids[-1])
        self.pushed = kept
        return ids


@pytest.mark.parametrize("parallel", [1, 3])
def test_an_answer_has_the_form_and_forced_tokens_share_one_decoder_step(rig_of: RigOf, parallel: int) -> None:
    rig = rig_of(forever, parallel=parallel)
    form = Words("no, nothing", "yes, a person", "yes, a dog")
    stream = rig.session.stream("Is there?", constraint=form)
    deltas = list(stream)
    answer = stream.answer()
    assert answer.text in ("no, nothing", "yes, a person", "yes, a dog")
    assert answer.finish_reason == "stop" and [delta.token_id for delta in deltas] == ids_of(answer.text)
    assert form.asked == [(VOCAB, [STOP_ID], 128)]
    assert form.made[0].pushed == list(answer.token_ids)
    assert rig.decoder.decoded <= 4  # at most eight forced tokens a step, two places to choose at
    assert [delta.index for delta in deltas] == list(range(len(deltas)))


def plain(rows: np.ndarray) -> np.ndarray:
    """Logits that depend on everything, all finite."""
    return np.random.default_rng(int(np.abs(rows).sum() * 1000)).normal(size=VOCAB).astype(np.float32)


def test_the_stand_in_is_a_form() -> None:
    form: Constraint = Words("a")
    matcher: Matcher = form.matcher("{" + " " * 1000, VOCAB, [STOP_ID], 1)
    assert isinstance(matcher, Follower) and not matcher.done


def test_each_forced_token_has_the_logprob_that_the_model_gives_it(rig_of: RigOf) -> None:
    rig = rig_of()
    rig.decoder._logits = lambda slot: plain(np.stack(rig.decoder.rows[slot]))
    text = "a long forced text of more than eight tokens"
    params = GenerationParams(top_logprobs=3, repetition_penalty=1.3)
    stream = rig.session.stream("go", params=params, constraint=Words(text))
    deltas = list(stream)
    answer = stream.answer()
    assert (answer.text, answer.finish_reason) == (text, "stop")
    rows = rig.decoder.rows[0]
    prompt = answer.usage.prompt_tokens
    for place, delta in enumerate(deltas):
        logits = plain(np.stack(rows[: prompt + place])).astype(np.float64)
        log_p = logits - np.log(np.exp(logits).sum())
        assert delta.logprob == pytest.approx(log_p[delta.token_id], abs=1e-5)
        assert [token for token, _ in delta.top] == np.argsort(-log_p)[:3].tolist()
        assert [value for _, value in delta.top] == pytest.approx(sorted(log_p)[::-1][:3], abs=1e-5)
    assert rig.decoder.decoded == -(-(len(deltas) - 1) // FORCED_AT_ONCE)


def test_an_end_token_comes_only_where_the_form_may_end(rig_of: RigOf) -> None:
    rig = rig_of(lambda rows: STOP_ID)
    assert rig.session.generate("go").text == ""
    answer = rig.session.generate("go", constraint=Words("ab", "abcd", "abce"))
    assert (answer.text, answer.finish_reason, answer.token_ids) == ("ab", "stop", tuple(ids_of("ab")))


def test_what_fits_into_no_budget_is_refused_in_the_call(rig_of: RigOf) -> None:
    rig = rig_of(context=60)
    form = Words("a text that is longer than its budget")
    with pytest.raises(InputError, match="fits into 5 tokens"):
        rig.session.stream("go", max_new_tokens=5, constraint=form)
    with pytest.raises(InputError, match="fits into"):
        rig.session.chat().stream("x" * 25, constraint=form)
    assert rig.decoder.prefilled == []
    assert form.asked[1][2] < 37


def test_a_form_that_is_filled_at_the_last_token_ends_with_stop_and_a_stop_string_still_ends(rig_of: RigOf) -> None:
    rig = rig_of(forever)
    assert rig.session.generate("go", max_new_tokens=3, constraint=Words("abc")).finish_reason == "stop"
    params = GenerationParams(stop=("d",))
    answer = rig.session.generate("go", params=params, constraint=Words("abcdefgh"))
    assert (answer.text, answer.finish_reason, answer.usage.completion_tokens) == ("abc", "stop", 4)
    assert rig.session.generate("go", constraint=Words("")).text == ""


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_token_that_the_form_refuses_is_drawn_again_and_not_counted(rig_of: RigOf, temperature: float) -> None:
    rig = rig_of(lambda rows: ids_of("x")[0])

    class Picky(Words):
        def matcher(self, *args: object) -> Follower:
            follower = super().matcher(*args)
            follower.refuses = set(ids_of("x"))
            return follower

    params = GenerationParams(temperature=temperature, seed=3, repetition_penalty=2.0)
    answer = rig.session.generate("go", params=params, constraint=Picky("x1", "y2"))
    assert (answer.text, answer.finish_reason) == ("y2", "stop")
    sampler = Sampler(params, VOCAB)
    logits = np.zeros(VOCAB, np.float32)
    first = sampler.choose(logits)
    assert sampler.choose(logits) == first and sampler.draws().step == 0
    assert not sampler.draws().seen.any()
    sampler.passed(first[0])
    assert sampler.draws().step == 1 and sampler.draws().seen[first[0]]
    sampler.follow(logits, 9)
    assert sampler.draws().step == 2 and sampler.draws().seen[9]


def test_a_chat_goes_on_behind_a_forced_answer(rig_of: RigOf) -> None:
    rig, fresh = rig_of(context=400), rig_of(context=400)
    chat, other = rig.session.chat(), fresh.session.chat()
    for each in (chat, other):
        each.generate("one?", constraint=Words("a forced answer"))
    answer = chat.generate("two?")
    slot = chat._cache.slot
    assert slot is not None and len(chat._cache.ids) == rig.decoder.length(slot)
    assert answer.usage.cached_tokens > 20
    assert answer.token_ids == fresh.session.generate([*other.messages, *chat.messages[2:3]]).token_ids


# --- the device's own sampling --------------------------------------------------------------------------------------


class SamplingFake(FakeDecoder):
    """Samples as a device would: ahead of its reader, and any other call ends it. Counts openings and lost steps."""

    def __init__(self, max_seq_len: int, script: object) -> None:
        super().__init__(max_seq_len, script)
        self.opened = self.lost = 0
        self.active: object | None = None

    def sampled(self, slot: int, token_id: int, draws: Draws) -> Generator[tuple[int, float], None, None]:
        self._end()
        self.opened += 1
        me = self.active = object()
        sampler = Sampler(draws.params, VOCAB)
        sampler._seed, sampler._step, sampler._seen = draws.seed, draws.step, draws.seen
        try:
            while True:
                super()._append(slot, list(self.embed([token_id])))
                token_id, logprob = sampler.sample(self._logits(slot))
                yield token_id, logprob
                if self.active is not me:
                    raise EngineError("another call of the decoder ended the sampling")
        finally:
            self.lost += 1
            if self.active is me:
                self.active = None

    def _end(self) -> None:
        self.active = None

    def _enter(self) -> None:
        super()._enter()
        self._end()

    def truncate(self, slot: int, length: int) -> None:
        self._end()
        super().truncate(slot, length)


@pytest.fixture
def sampling_rig(rig_of: RigOf, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Rig]:
    """Sessions whose decoder samples."""

    def build(**options: int) -> Rig:
        context = options.pop("context", 300)
        decoder = SamplingFake(context, None)
        decoder._logits = lambda slot: plain(np.stack(decoder.rows[slot]))
        from runtime.session import Session

        rig = rig_of(context=context)  # writes the bundle and its vision
        path = rig.session._bundle.path
        rig.session.close()
        monkeypatch.setattr(startup, "open_decoder", lambda bundle, *, slots, **_: decoder.open(slots) or decoder)
        assert isinstance(decoder, SamplingDecoder)
        return Rig(Session.open(path, **options), decoder, rig.vision)

    return build


PARAMS = [
    GenerationParams(temperature=temperature, seed=seed, repetition_penalty=penalty, max_new_tokens=tokens)
    for temperature, seed, penalty, tokens in [
        (0.0, 1, 1.0, 20),
        (0.9, 2, 1.0, 12),
        (1.3, 3, 1.4, 25),
        (0.9, 4, 1.2, 3),
    ]
]


def test_an_answer_that_is_alone_is_sampled_on_the_device_in_one_go(sampling_rig: Callable[..., Rig]) -> None:
    rig = sampling_rig(parallel=2)
    with rig.session as session:
        session.generate("go", params=PARAMS[0])
        assert (rig.decoder.opened, rig.decoder.decoded) == (1, 0)


def test_top_logprobs_and_forms_need_logits_on_the_host(sampling_rig: Callable[..., Rig]) -> None:
    rig = sampling_rig()
    with rig.session as session:
        session.generate("go", params=GenerationParams(max_new_tokens=4, top_logprobs=1))
        session.generate("go", constraint=Words("abc", "def"))
        assert rig.decoder.opened == 0


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0, 1.0), (4.0, 1.0, 0.5, 2.0)])
@pytest.mark.parametrize("priorities", [(0, 0, 0, 0), (0, 1, 2, 1)])
def test_answers_that_change_between_device_and_host_are_those_written_alone(
    sampling_rig: Callable[..., Rig], weights: tuple[float, ...], priorities: tuple[int, ...]
) -> None:
    alone = sampling_rig()
    with alone.session as session:
        expected = [session.generate(f"q{n}", params=params).token_ids for n, params in enumerate(PARAMS)]
    rig = sampling_rig(parallel=5, max_pending=20)
    with rig.session as session:
        hold = Hold(session)
        streams = [
            session.stream(f"q{n}", params=params, weight=weights[n], priority=priorities[n])
            for n, params in enumerate(PARAMS)
        ]
        turn = session.chat().stream("q2", params=PARAMS[2])
        hold.go.set()
        assert [stream.answer().token_ids for stream in streams] == expected
        assert turn.answer().token_ids == expected[2]
        assert rig.decoder.opened > 0 and rig.decoder.decoded > 0
        assert rig.decoder.lost == rig.decoder.opened  # each was closed
        slots = session._pipeline.slots
        for cache in slots._answers:
            assert cache.slot is not None and len(cache.ids) == rig.decoder.length(cache.slot)


def test_a_newcomer_ends_the_sampling_of_another_and_it_goes_on_at_the_right_draw(
    sampling_rig: Callable[..., Rig],
) -> None:
    rig = sampling_rig(parallel=2)
    with rig.session as session:
        expected = session.generate("long", params=PARAMS[2]).token_ids
        brief = session.generate("brief", params=PARAMS[3]).token_ids
        openings, got = rig.decoder.opened, []

        def ask(delta: Delta) -> None:
            if delta.index in (3, 9, 15):
                got.append(session.stream("brief", params=PARAMS[3]))

        long = session.stream("long", params=PARAMS[2], on_delta=ask)
        assert long.answer().token_ids == expected
        assert [stream.answer().token_ids for stream in got] == [brief] * 3
        assert rig.decoder.opened >= openings + 4  # it was alone again after each of them


def test_who_comes_and_is_cancelled_before_its_first_unit_costs_the_sampling_and_no_more(
    sampling_rig: Callable[..., Rig],
) -> None:
    rig = sampling_rig(parallel=2)
    with rig.session as session:
        expected = session.generate("long", params=PARAMS[2]).token_ids
        came, openings = [], rig.decoder.opened

        def disturb(delta: Delta) -> None:
            if delta.index == 3:
                came.append(session.stream("brief", params=PARAMS[3]))
            if delta.index == 4:
                came[0].cancel()

        assert session.stream("long", params=PARAMS[2], on_delta=disturb).answer().token_ids == expected
        assert came[0].answer().token_ids == ()
        assert (rig.decoder.decoded, rig.decoder.opened) == (1, openings + 2)


def test_who_is_ended_while_it_begins_leaves_the_sampling_of_another_as_it_should_be(
    sampling_rig: Callable[..., Rig],
) -> None:
    rig = sampling_rig(parallel=2)
    with rig.session as session:
        expected = session.generate("long", params=PARAMS[2]).token_ids
        slots, came = session._pipeline.slots, []
        lend = slots.answer_cache

        def cancelled_meanwhile() -> KvCache:
            cache = lend()
            if came:
                came[0]._channel.control.cancelled = True
            return cache

        slots.answer_cache = cancelled_meanwhile

        def disturb(delta: Delta) -> None:
            if delta.index == 3:
                came.append(session.stream("brief", params=PARAMS[3], priority=1))

        assert session.stream("long", params=PARAMS[2], on_delta=disturb).answer().token_ids == expected
        assert came[0].answer().token_ids == ()


def test_entering_for_another_request_closes_what_is_under_way() -> None:
    decoder = SamplingFake(50, None)
    decoder._logits = lambda slot: plain(np.stack(decoder.rows[slot]))
    decoder.open(1)
    ahead = Ahead(decoder)
    prompt = EncodedPrompt(np.array([5], np.int64), (), ())
    one, two = (Request(GenerationParams(), Control(), StageClock(), [], (), prompt) for _ in range(2))
    sampler = Sampler(GenerationParams(), VOCAB)
    ahead.next(one, 0, 5, sampler)
    ahead.enter(one)
    ahead.next(one, 0, 5, sampler)
    assert (decoder.opened, decoder.lost) == (1, 0)
    ahead.leave(two)
    assert decoder.lost == 0
    ahead.enter(two)
    assert decoder.lost == 1
    ahead.leave(one)
    ahead.end()
    assert not Ahead(FakeDecoder()).possible


# --- the most probable ----------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=100)
@given(
    values=st.lists(st.sampled_from([-5.0, -1.0, 0.0, 0.5, 3.0]), min_size=1, max_size=40),
    count=st.integers(0, 20),
)
def test_top_is_the_head_of_a_full_sort_with_the_lowest_ids_first_among_equals(values: list[float], count: int) -> None:
    logits = np.array(values, np.float32)
    sampler = Sampler(GenerationParams(top_logprobs=count), len(values))
    log_p = np.log(np.exp(logits.astype(np.float64)) / np.exp(logits.astype(np.float64)).sum())
    order = sorted(range(len(values)), key=lambda token: (-values[token], token))[:count]
    got = sampler.top(logits)
    assert [token for token, _ in got] == order
    np.testing.assert_allclose([value for _, value in got], log_p[order], atol=1e-5)


@pytest.mark.parametrize("bad", [-1, 21, 1.5, True])
def test_top_logprobs_out_of_range_is_refused(rig_of: RigOf, bad: object) -> None:
    with pytest.raises(InputError, match="top_logprobs"):
        rig_of().session.stream("go", params=GenerationParams(top_logprobs=bad))


def test_top_is_the_models_own_whatever_filters_say(rig_of: RigOf) -> None:
    rig = rig_of()
    rig.decoder._logits = lambda slot: plain(np.stack(rig.decoder.rows[slot]))
    params = GenerationParams(temperature=2.0, top_k=1, seed=1, max_new_tokens=5, top_logprobs=2)
    stream = rig.session.stream("go", params=params)
    deltas = [delta for delta in stream if delta.top]  # not the one that only brings what was held back
    assert [delta.index for delta in deltas] == [0, 1, 2, 3, 4]
    for delta in deltas:
        assert delta.top[0] == (delta.token_id, pytest.approx(delta.logprob)) and len(delta.top) == 2
    without = list(rig.session.stream("go", max_new_tokens=2))
    assert all(delta.top == () for delta in without)
