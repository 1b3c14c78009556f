"""Several answers at once, on fakes: each is what it would be alone, whatever ran between its tokens."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable

import numpy as np
import pytest

from runtime import startup
from runtime.budget import Budget
from runtime.bundle import Manifest
from runtime.errors import DeadlineError, DeviceLostError, EngineError, InputError, UsageError
from runtime.pipeline import PREFILL_CHUNK
from runtime.session import Session
from runtime.types import Delta, GenerationParams
from tests.runtime.fakes import Rig, ids_of, rig_of, saying  # noqa: F401 - a fixture

RigOf = Callable[..., Rig]


def picture(seed: int) -> np.ndarray:
    return np.full((6 + seed % 5, 9, 3), 40 * (seed % 6), np.uint8)


class Hold:
    """A request of the highest priority that keeps the owner thread busy until `go`: others come together then."""

    def __init__(self, session: Session) -> None:
        entered, self.go = threading.Event(), threading.Event()

        def wait(_: object) -> None:
            entered.set()
            assert self.go.wait(10)

        self.stream = session.stream("hold", max_new_tokens=1, priority=10**6, on_delta=wait)
        assert entered.wait(10)


def forever(rows: np.ndarray) -> int:
    """A letter that depends on every row, and no end."""
    return ids_of("abcdefghijklmnopqrstuvwxyz")[int(np.abs(rows).sum() * 7) % 26]


@pytest.mark.parametrize("seed", range(6))
def test_answers_written_together_are_those_written_alone(rig_of: RigOf, seed: int) -> None:
    rng = random.Random(seed)
    rig = rig_of(context=400, parallel=rng.choice([2, 3, 5]), chats=rng.choice([1, 2, 3]), max_pending=64)
    alone = rig_of(context=400, chats=4)
    asked = [
        (
            f"question {number} " + "x" * rng.randint(0, 60),
            [picture(rng.randint(0, 9)) for _ in range(rng.randint(0, 2))],
            GenerationParams(temperature=rng.choice([0.0, 1.5]), seed=number, max_new_tokens=rng.randint(1, 20)),
            rng.randint(0, 1),
            rng.choice([0.3, 1.0, 4.0]),
        )
        for number in range(12)
    ]
    chats = [rig.session.chat() for _ in range(4)]
    alone_chats = [alone.session.chat() for _ in range(4)]
    for _ in range(2):  # two rounds: in the second one, chats continue what is in their cache
        hold = Hold(rig.session)
        streams = [
            rig.session.stream(prompt, images, params=params, priority=priority, weight=weight)
            for prompt, images, params, priority, weight in asked
        ]
        turns = [
            chat.stream(f"turn of {number}", [picture(number)], params=asked[number][2])
            for number, chat in enumerate(chats)
        ]
        hold.go.set()
        for stream, (prompt, images, params, _, _) in zip(streams, asked, strict=True):
            assert stream.answer().token_ids == alone.session.generate(prompt, images, params=params).token_ids
        for number, (turn, chat) in enumerate(zip(turns, alone_chats, strict=True)):
            expected = chat.generate(f"turn of {number}", [picture(number)], params=asked[number][2])
            assert turn.answer().token_ids == expected.token_ids
        assert [chat.messages for chat in chats] == [chat.messages for chat in alone_chats]
    slots = rig.session._pipeline.slots
    assert slots._held == set()
    for chat in chats:
        cache = chat._cache
        assert cache.slot is None or len(cache.ids) == rig.decoder.length(cache.slot)


def test_each_answer_at_once_and_each_conversation_has_a_slot(rig_of: RigOf) -> None:
    assert len(rig_of(parallel=3, chats=2).decoder.rows) == 5
    with pytest.raises(UsageError, match="parallel is 0"):
        rig_of(parallel=0)


def units_of(rig: Rig) -> list[tuple[str, int]]:
    """What the engines are asked from now on: ("see" | "prefill" | "decode", slot or 0)."""
    units: list[tuple[str, int]] = []
    prefill, decode, encode = rig.decoder.prefill, rig.decoder.decode, rig.vision.encode

    def noted_prefill(slot: int, embeds: np.ndarray, **options: int) -> np.ndarray:
        units.append(("prefill", slot))
        return prefill(slot, embeds, **options)

    def noted_decode(slot: int, ids: list[int]) -> np.ndarray:
        units.append(("decode", slot))
        return decode(slot, ids)

    def noted_encode(tiles: np.ndarray, layout: object) -> np.ndarray:
        units.append(("see", 0))
        return encode(tiles, layout)

    rig.decoder.prefill, rig.decoder.decode, rig.vision.encode = noted_prefill, noted_decode, noted_encode
    return units


def test_a_unit_is_a_picture_a_chunk_of_the_prompt_or_a_token(rig_of: RigOf) -> None:
    rig = rig_of(forever, context=3000, parallel=3)
    hold, units = Hold(rig.session), units_of(rig)
    writing = rig.session.stream("a", max_new_tokens=9)
    reading = rig.session.stream("y" * 1200, [picture(0), picture(1)], max_new_tokens=2)
    hold.go.set()
    reading.answer(), writing.answer()
    a = next(slot for kind, slot in units if kind == "prefill")
    b = next(slot for kind, slot in units if kind == "prefill" and slot != a)
    assert units[:11] == [
        ("prefill", a),
        ("see", 0),
        ("decode", a),
        ("see", 0),
        ("decode", a),
        ("prefill", b),
        ("decode", a),
        ("prefill", b),
        ("decode", a),
        ("prefill", b),
        ("decode", a),
    ]
    assert PREFILL_CHUNK < 1200


def test_priority_goes_first_token_by_token_and_weights_share_the_rest(rig_of: RigOf) -> None:
    rig = rig_of(forever, parallel=4, context=400)
    hold, order = Hold(rig.session), []
    for name, priority, weight in (("l", 0, 1.0), ("w", 0, 3.0), ("H", 5, 1.0)):
        rig.session.stream(
            "go",
            max_new_tokens=40,
            priority=priority,
            weight=weight,
            on_delta=lambda delta, name=name: order.append(name),
        )
    last = rig.session.stream("go", max_new_tokens=1, priority=-1)
    hold.go.set()
    last.answer()
    names = "".join(order)
    assert names[:40] == "H" * 40
    assert names[40:80].count("w") == pytest.approx(30, abs=2)
    assert names.count("l") == 40 and names.count("w") == 40


@pytest.mark.parametrize("end", ["cancel", "deadline", "forgotten"])
def test_a_low_priority_that_is_ended_frees_its_place_while_a_higher_one_runs(rig_of: RigOf, end: str) -> None:
    rig = rig_of(forever, parallel=2, context=400)
    rig.decoder.gate = threading.Semaphore(0)
    units = units_of(rig)
    low = rig.session.stream("low", max_new_tokens=100)
    next(low)  # now in its first decoder step, which waits at the gate
    high = rig.session.stream("high", max_new_tokens=100, priority=1)
    rig.decoder.gate.release()
    next(high)  # now in the first step of this one; the lower one has two tokens
    waiting = rig.session.stream("wait", max_new_tokens=2, priority=2)
    channel = low._channel
    if end == "deadline":
        channel.control._deadline_ns = 0
    elif end == "cancel":
        low.cancel()
    else:
        del low
    rig.decoder.gate.release(2)  # for the step that is under way, and for the one that waits
    try:
        assert len(waiting.answer(timeout_s=10).token_ids) == 2
    except DeadlineError:
        rig.decoder.gate.release(1000)
        raise
    assert not high.done
    answer = channel.wait(10)
    assert answer.finish_reason == ("deadline" if end == "deadline" else "cancelled")
    assert (len(answer.token_ids), units.count(("decode", 0))) == (2, 2)  # the second one is the newcomer's
    rig.decoder.gate.release(1000)
    assert len(high.answer().token_ids) == 100


def test_a_turn_that_failed_leaves_nothing_in_its_slot(rig_of: RigOf) -> None:
    rig = rig_of(forever, parallel=2, context=400, chats=1)
    chat = rig.session.chat()
    chat.generate("one?", max_new_tokens=3)
    stumbling = chat.stream("two?", max_new_tokens=3, on_delta=lambda delta: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        stumbling.answer()
    assert (chat._cache.slot, chat._cache.ids) == (None, [])
    assert chat.generate("two?", max_new_tokens=3).usage.cached_tokens == 0
    assert chat._cache.slot == 2


def test_a_picture_that_is_not_seen_yet_ends_with_its_request(rig_of: RigOf) -> None:
    rig = rig_of(forever, parallel=2)
    entered, go = threading.Event(), threading.Event()
    encode = rig.vision.encode

    def held(tiles: np.ndarray, layout: object) -> np.ndarray:
        entered.set()
        go.wait(10)
        return encode(tiles, layout)

    rig.vision.encode = held
    chat = rig.session.chat()
    stream = chat.stream("what?", [picture(1), picture(2)])
    assert entered.wait(10)
    stream.cancel()
    go.set()
    assert stream.answer().finish_reason == "cancelled" and stream.answer().token_ids == ()
    assert (rig.vision.calls, rig.decoder.prefilled) == (1, [])
    late = rig.session.stream("what?", [picture(1), picture(2)], deadline_s=1000.0)
    late._channel.control._deadline_ns = 0
    with pytest.raises(DeadlineError):
        late.answer()
    assert chat.generate("what?", [picture(1)], max_new_tokens=3).usage.cached_tokens == 0


@pytest.mark.parametrize("part", ["vision", "decoder", "callback", "logits"])
def test_an_error_of_one_answer_leaves_the_others_as_they_are(rig_of: RigOf, part: str) -> None:
    rig = rig_of(forever, parallel=3, context=300, chats=1)
    expected = rig.session.generate("good", [picture(1)], max_new_tokens=30).token_ids
    said = rig.session.generate("turn", max_new_tokens=30).token_ids
    hold = Hold(rig.session)
    good = rig.session.stream("good", [picture(1)], max_new_tokens=30, priority=1)
    turn = rig.session.chat().stream("turn", max_new_tokens=30, priority=1)
    logits = rig.decoder._logits

    def not_finite(slot: int) -> np.ndarray:
        rig.decoder._logits = logits
        return np.full_like(logits(slot), np.nan)

    def fail_after_the_third(delta: Delta) -> None:
        if delta.index == 2 and part == "callback":
            raise ValueError("mine")
        if delta.index == 2 and part == "decoder":
            rig.decoder.fail_next = EngineError("mine")
        if delta.index == 2 and part == "logits":
            rig.decoder._logits = not_finite

    if part == "vision":
        rig.vision.fail_next = EngineError("mine")
    bad = rig.session.stream("bad", [picture(2)], on_delta=fail_after_the_third, priority=2)
    hold.go.set()
    with pytest.raises((EngineError, ValueError), match="mine|not finite"):
        bad.answer()
    assert good.answer().token_ids == expected and turn.answer().token_ids == said
    assert rig.session._pipeline.slots._held == set()
    assert rig.session.generate("good", [picture(1)], max_new_tokens=30).token_ids == expected


def test_a_lost_device_fails_every_answer_and_the_session_from_then_on(rig_of: RigOf) -> None:
    rig = rig_of(forever, parallel=2, context=300)
    hold = Hold(rig.session)
    streams = [rig.session.stream("go", max_new_tokens=50) for _ in range(4)]
    rig.decoder.fail_next = DeviceLostError("the context is lost", hint="start again")
    hold.go.set()
    for stream in streams:
        with pytest.raises(DeviceLostError, match="the context is lost"):
            stream.answer()
    with pytest.raises(DeviceLostError, match="the context is lost"):
        rig.session.stream("go")
    rig.session.close()
    assert rig.decoder.closed == 1


def test_more_conversations_at_once_than_caches_borrow_a_slot_and_are_prefilled_again(rig_of: RigOf) -> None:
    rig = rig_of(context=600, parallel=3, chats=1)
    alone = rig_of(context=600, chats=3)
    chats, expected = [rig.session.chat() for _ in range(3)], [alone.session.chat() for _ in range(3)]
    cached = []
    for turn in range(3):
        hold = Hold(rig.session)
        streams = [chat.stream(f"{turn} {number}?") for number, chat in enumerate(chats)]
        hold.go.set()
        answers = [stream.answer() for stream in streams]
        for number, (answer, chat) in enumerate(zip(answers, expected, strict=True)):
            assert answer.token_ids == chat.generate(f"{turn} {number}?").token_ids
        cached.append([answer.usage.cached_tokens > 0 for answer in answers])
    assert [sum(row) for row in cached] == [0, 1, 1]  # one conversation keeps its cache


def test_close_ends_every_answer_that_runs(rig_of: RigOf) -> None:
    rig = rig_of(forever, parallel=3, context=400)
    rig.decoder.gate = threading.Semaphore(20)
    streams = [rig.session.stream("go", max_new_tokens=300) for _ in range(3)]
    for stream in streams:
        next(stream)
    closer = threading.Thread(target=rig.session.close)
    closer.start()
    rig.decoder.gate.release(1000)
    closer.join(10)
    assert not closer.is_alive()
    assert {stream.answer().finish_reason for stream in streams} == {"cancelled"}


def test_shares_are_checked_in_the_call(rig_of: RigOf) -> None:
    session = rig_of().session
    for ask in (session.stream, session.generate, session.chat().stream, session.chat().generate):
        with pytest.raises(InputError, match="weight is 0"):
            ask("go", weight=0)
        with pytest.raises(InputError, match="priority is 'high'"):
            ask("go", priority="high")
    with pytest.raises(InputError, match="weight"):
        session.watch("synthetic://?frames=1", "go", weight=-1.0)


def test_a_watch_asks_with_its_share_and_form(rig_of: RigOf) -> None:
    rig = rig_of(saying("fine"))
    asked: list[dict[str, object]] = []
    stream = rig.session.stream

    def noted(*args: object, **options: object) -> object:
        asked.append(options)
        return stream(*args, **options)

    rig.session.stream = noted
    with rig.session.watch("synthetic://?frames=2", "go", every_frame=True, priority=3, weight=2.0) as watch:
        assert [caption.text for caption in watch] == ["fine", "fine"]
    assert [(each["priority"], each["weight"], each["constraint"]) for each in asked] == [(3, 2.0, None)] * 2


def test_the_memory_budget_counts_every_slot(rig_of: RigOf, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []
    budget = startup.memory_budget

    def noted(manifest: Manifest, *, slots: int, **options: str) -> Budget:
        counted.append(slots)
        return budget(manifest, slots=slots, **options)

    monkeypatch.setattr(startup, "memory_budget", noted)
    monkeypatch.setattr(startup, "available_memory", lambda: 1 << 50)
    rig_of(parallel=3, chats=2)
    assert counted == [5]


def test_steps_count_units_of_work(rig_of: RigOf) -> None:
    rig = rig_of(saying("abc"), context=3000)
    before = rig.session.steps
    rig.session.generate("y" * 1200, [picture(1), picture(2)])
    # Two pictures, three chunks (the last one with the first letter), then a step each for b, c and the end.
    rig.session.memory_report()  # what it waits for has been counted; it counts itself once it is through
    assert rig.session.steps - before in (8, 9)


def test_bytes_of_an_answers_tokens_are_its_text(rig_of: RigOf) -> None:
    session = rig_of(saying("a réd circle")).session
    answer = session.generate("go")
    assert b"".join(map(session.token_bytes, answer.token_ids)) == answer.text.encode()
