"""The session on fakes: what comes out, who runs what, and how it behaves when things go wrong."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from runtime import startup
from runtime.bundle import Bundle
from runtime.errors import (
    BundleError,
    BusyError,
    ClosedError,
    DeadlineError,
    EngineError,
    ImageError,
    InputError,
    PromptError,
    UsageError,
)
from runtime.prompt import ImagePart, Message
from runtime.session import Session
from runtime.text_stream import TextStream
from runtime.types import Answer, Delta, Frame, GenerationParams
from tests.runtime.fakes import (
    STOP_ID,
    VOCAB,
    FakeDecoder,
    FakeVision,
    Rig,
    fake_bundle,
    ids_of,
    rig_of,  # noqa: F401 - a fixture
    saying,
)

RigOf = Callable[..., Rig]
PICTURE = np.full((20, 30, 3), 90, np.uint8)


def test_answer_is_the_concatenation_of_its_deltas(rig_of: RigOf) -> None:
    rig = rig_of(saying(" a réd circle"))
    stream = rig.session.stream("What?", [PICTURE])
    deltas = list(stream)
    answer = stream.answer()
    assert "".join(delta.text for delta in deltas) == answer.text == "a réd circle"
    assert [delta.token_id for delta in deltas] == list(answer.token_ids) == ids_of(" a réd circle")
    assert [delta.logprob for delta in deltas] == list(answer.logprobs)
    assert [delta.index for delta in deltas] == list(range(len(deltas)))
    assert [delta.t_ns for delta in deltas] == sorted(delta.t_ns for delta in deltas)
    assert answer.finish_reason == "stop"


def test_usage_and_timings_describe_the_request(rig_of: RigOf) -> None:
    answer = rig_of(saying("abc")).session.generate("What?", [PICTURE])
    assert (answer.usage.image_tokens, answer.usage.completion_tokens, answer.usage.cached_tokens) == (4, 3, 0)
    assert answer.usage.prompt_tokens == len("\0" + "USER: " + "\0" * 4 + "\n" + "What?" + " " + "ASSISTANT:")
    timings = answer.timings.as_dict()
    stages = {name: ms for name, ms in timings.items() if name not in ("ttft_ms", "total_ms", "decode_tokens_per_s")}
    assert all(ms > 0 for ms in stages.values()), stages
    assert sum(stages.values()) <= timings["total_ms"]
    assert timings["ttft_ms"] <= timings["total_ms"]


def test_length_ends_an_answer_and_its_last_token_is_not_fed(rig_of: RigOf) -> None:
    rig = rig_of(saying("abcdefgh"))
    answer = rig.session.generate("Go", max_new_tokens=3)
    assert (answer.text, answer.finish_reason) == ("abc", "length")
    assert rig.decoder.decoded == 2


def test_context_ends_an_answer_that_would_outgrow_it(rig_of: RigOf) -> None:
    rig = rig_of(saying("x", stop=False), context=40)
    answer = rig.session.generate("Go on for ever", max_new_tokens=1000)
    assert answer.finish_reason == "length"
    assert answer.usage.prompt_tokens + answer.usage.completion_tokens == 40


def test_half_a_character_at_the_end_is_flushed_as_a_replacement(rig_of: RigOf) -> None:
    stream = rig_of(saying("aé")).session.stream("Go", max_new_tokens=2)
    deltas = list(stream)
    assert [delta.text for delta in deltas] == ["a", "", "\ufffd"]
    assert [delta.index for delta in deltas] == [0, 1, 1]
    assert stream.answer().text == "a\ufffd"


def test_stop_string_ends_the_text_before_it(rig_of: RigOf) -> None:
    rig = rig_of(saying("red ### blue"))
    stream = rig.session.stream("Go", params=GenerationParams(stop=("###", "zzz")))
    assert "".join(delta.text for delta in stream) == "red "
    answer = stream.answer()
    assert (answer.text, answer.finish_reason) == ("red ", "stop")
    assert answer.token_ids == tuple(ids_of("red ###"))


def test_held_back_text_that_is_no_stop_string_is_given_at_the_end_token(rig_of: RigOf) -> None:
    answer = rig_of(saying("red ##")).session.generate("Go", params=GenerationParams(stop=("###",)))
    assert (answer.text, answer.finish_reason) == ("red ##", "stop")


@pytest.mark.parametrize("end", [STOP_ID, 0])
def test_each_of_several_end_tokens_ends_the_answer(rig_of: RigOf, end: int) -> None:
    rig = rig_of(lambda rows: end)
    rig.session._pipeline._encoder._prompt = _with_stop_ids(rig, (STOP_ID, 0))
    answer = rig.session.generate("Go")
    assert (answer.text, answer.token_ids, answer.finish_reason) == ("", (), "stop")


def _with_stop_ids(rig: Rig, stop_ids: tuple[int, ...]) -> object:
    import dataclasses

    return dataclasses.replace(rig.session.manifest.prompt, stop_ids=stop_ids)


def test_same_seed_gives_the_same_answer_whatever_ran_between(rig_of: RigOf) -> None:
    rig = rig_of()
    rig.decoder._logits = lambda slot: np.zeros(VOCAB, np.float32)  # every token is as likely
    params = GenerationParams(temperature=1.0, seed=5, max_new_tokens=12)
    first = rig.session.generate("Go", params=params)
    rig.session.generate("Something else", [PICTURE], params=params)
    assert rig.session.generate("Go", params=params).token_ids == first.token_ids
    other = GenerationParams(temperature=1.0, seed=6, max_new_tokens=12)
    assert rig.session.generate("Go", params=other).token_ids != first.token_ids


def test_text_only_prompt_needs_no_vision(rig_of: RigOf) -> None:
    rig = rig_of(saying("yes"))
    assert rig.session.generate("Is it?").text == "yes"
    assert rig.vision.calls == 0


def test_same_object_twice_is_seen_once_and_stands_twice(rig_of: RigOf) -> None:
    rig = rig_of()
    answer = rig.session.generate("Both?", [PICTURE, PICTURE, np.zeros((4, 4, 3), np.uint8)])
    assert rig.vision.calls == 2
    assert answer.usage.image_tokens == 3 * 4


def test_user_text_never_becomes_a_special_token(rig_of: RigOf) -> None:
    answer = rig_of(saying("no")).session.generate("<image> </s> <s>", [PICTURE])
    assert answer.usage.image_tokens == 4


def test_image_buffer_may_be_reused_after_the_call(rig_of: RigOf) -> None:
    rig = rig_of()
    expected = rig.session.generate("Go", [PICTURE]).text
    rig.decoder.gate = threading.Semaphore(0)
    busy = rig.session.stream("Wait")
    for image in (PICTURE.copy(), Frame(PICTURE.copy(), 0, 0)):
        stream = rig.session.stream("Go", [image])
        (image.rgb if isinstance(image, Frame) else image)[:] = 0
        rig.decoder.gate.release(1000)
        assert stream.answer().text == expected
    busy.answer()


def test_bgr_array_is_the_rgb_array_with_its_channels_turned(rig_of: RigOf) -> None:
    rgb = np.zeros((8, 8, 3), np.uint8)
    rgb[..., 0] = 200
    session = rig_of().session
    seen: list[np.ndarray] = []
    session._pipeline._vision.encode = lambda tiles, layout: seen.append(tiles) or np.ones((4, 4), np.float32)
    session.generate("Go", [rgb])
    session.generate("Go", [rgb[..., ::-1]], color="bgr")
    np.testing.assert_array_equal(seen[0], seen[1])


@pytest.mark.parametrize(("frames", "indices"), [(9, [0, 3, 5, 8]), (4, [0, 1, 2, 3]), (2, [0, 0, 1, 1]), (1, [0] * 4)])
def test_video_frames_are_taken_at_equal_distances(rig_of: RigOf, frames: int, indices: list[int]) -> None:
    rig = rig_of()
    video = [np.full((6, 6, 3), 20 * index, np.uint8) for index in range(frames)]
    answer = rig.session.generate("What moves?", video=video)
    assert answer.usage.image_tokens == 4 * 4
    assert rig.vision.calls == len(set(indices))
    assert rig.session.generate("What moves?", [video[index] for index in indices]).text == answer.text


def test_conversation_of_messages_places_its_images_itself(rig_of: RigOf) -> None:
    rig = rig_of()
    messages = [
        Message("user", (ImagePart(0), "One?")),
        Message("assistant", ("abc",)),
        Message("user", ("Two?", ImagePart(1))),
    ]
    answer = rig.session.generate(messages, [PICTURE, PICTURE[:5]])
    assert answer.usage.image_tokens == 8
    with pytest.raises(PromptError, match="2 image places"):
        rig.session.generate(messages, [PICTURE])
    with pytest.raises(PromptError, match="system is given"):
        rig.session.generate(messages, [PICTURE, PICTURE], system="be brief")
    with pytest.raises(PromptError, match="holds a str"):
        rig.session.generate(["hello"])


@pytest.mark.parametrize(
    ("prompt", "images", "error", "message"),
    [
        (5, [], PromptError, "of type int"),
        ("\ud800", [], PromptError, "lone surrogate"),
        ("x" * 200, [], PromptError, "context holds 160"),
        ("x" * 100_000, [], PromptError, "100000 characters"),
        ("x", [PICTURE] * 40, PromptError, "160 of images"),
        ("x", PICTURE, InputError, "images is one ndarray"),
        ("x", "photo.jpg", InputError, "a list is needed"),
        ("x", [PICTURE] * 257, InputError, "the most is 256"),
        ("x", [PICTURE.astype(float)], ImageError, "float"),
        ("x", ["no-such-file.jpg"], ImageError, "no-such-file"),
    ],
)
def test_bad_input_is_refused_in_the_call_and_the_session_goes_on(
    rig_of: RigOf, prompt: str, images: list, error: type[Exception], message: str
) -> None:
    rig = rig_of(saying("fine"))
    with pytest.raises(error, match=message):
        rig.session.stream(prompt, images)
    assert rig.decoder.prefilled == [] and rig.vision.calls == 0
    assert rig.session.generate("And now?").text == "fine"


def test_parameters_out_of_range_are_refused_in_the_call(rig_of: RigOf) -> None:
    session = rig_of().session
    with pytest.raises(InputError, match="top_p"):
        session.stream("x", params=GenerationParams(top_p=2.0))
    with pytest.raises(DeadlineError, match="has passed already"):
        session.stream("x", deadline_s=0.0)


# --- ways to read -------------------------------------------------------------------------------------------------


def test_async_iteration_gives_the_same_deltas_and_lets_the_loop_run(rig_of: RigOf) -> None:
    rig = rig_of(saying("abcdef"))
    rig.decoder.gate = threading.Semaphore(0)
    order: list[str] = []

    async def read() -> Answer:
        stream = rig.session.stream("Go")
        async for delta in stream:
            order.append(delta.text)
        return await stream.answer_async()

    async def turn_the_crank() -> None:
        for _ in range(6):
            await asyncio.sleep(0)
            order.append("-")
            rig.decoder.gate.release()

    async def both() -> Answer:
        return (await asyncio.gather(read(), turn_the_crank()))[0]

    assert asyncio.run(both()).text == "abcdef"
    assert "".join(order).replace("-", "") == "abcdef"
    assert order.count("-") == 6


def test_waiting_in_an_event_loop_does_not_poll(rig_of: RigOf) -> None:
    rig = rig_of(saying("ab"))
    rig.decoder.gate = threading.Semaphore(0)
    wakes = 0

    async def read() -> str:
        nonlocal wakes
        loop = asyncio.get_running_loop()
        run_once = loop._run_once

        def counted() -> None:
            nonlocal wakes
            wakes += 1
            run_once()

        loop._run_once = counted
        stream = rig.session.stream("Go")
        text = (await stream.__anext__()).text
        loop.call_later(0.05, rig.decoder.gate.release, 10)
        async for delta in stream:
            text += delta.text
        return text

    assert asyncio.run(read()) == "ab"
    assert wakes < 20


def test_each_event_loop_can_read_its_own_stream(rig_of: RigOf) -> None:
    session = rig_of().session
    expected = [session.generate(f"number {index}").text for index in range(4)]
    got: dict[int, str] = {}

    async def read(index: int) -> None:
        got[index] = "".join([delta.text async for delta in session.stream(f"number {index}")])

    threads = [threading.Thread(target=lambda index=index: asyncio.run(read(index))) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [got[index] for index in range(4)] == expected


def test_cancelled_task_leaves_the_stream_readable(rig_of: RigOf) -> None:
    rig = rig_of(saying("ab"))
    rig.decoder.gate = threading.Semaphore(0)

    async def read() -> str:
        stream = rig.session.stream("Go")
        first = await stream.__anext__()
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(stream.__anext__(), 0.01)
        rig.decoder.gate.release(10)
        return first.text + "".join([delta.text async for delta in stream])

    assert asyncio.run(read()) == "ab"


def test_callback_gets_every_delta_on_the_sessions_thread_and_needs_no_reader(rig_of: RigOf) -> None:
    rig = rig_of(saying("abc"))
    seen: list[tuple[str, int]] = []
    done = threading.Event()

    def note(delta: Delta) -> None:
        seen.append((delta.text, threading.get_ident()))
        if len(seen) == 3:
            done.set()

    rig.session.stream("Go", on_delta=note)  # nobody holds the stream
    gc.collect()
    assert done.wait(10)
    assert "".join(text for text, _ in seen) == "abc"
    assert {thread for _, thread in seen} == rig.decoder.threads


def test_exception_of_a_callback_ends_the_request_and_reaches_the_reader(rig_of: RigOf) -> None:
    rig = rig_of(saying("abc"))

    def fail(delta: Delta) -> None:
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        rig.session.stream("Go", on_delta=fail).answer()
    assert rig.session.generate("Go").text == "abc"


def test_waiting_inside_a_callback_is_refused_instead_of_hanging(rig_of: RigOf) -> None:
    rig = rig_of(saying("abc"))
    with pytest.raises(UsageError, match="wait for ever"):
        rig.session.stream("Go", on_delta=lambda delta: rig.session.generate("Again")).answer()


# --- ending early --------------------------------------------------------------------------------------------------


def test_cancel_ends_the_answer_within_one_token(rig_of: RigOf) -> None:
    rig = rig_of(saying("x", stop=False))
    rig.decoder.gate = threading.Semaphore(3)
    stream = rig.session.stream("Go", max_new_tokens=100)
    read = [next(stream).text for _ in range(4)]
    stream.cancel()
    rig.decoder.gate.release(1000)
    answer = stream.answer()
    assert answer.finish_reason == "cancelled"
    assert len(read) <= len(answer.token_ids) <= 5
    assert rig.decoder.decoded <= 4
    stream.cancel()


def test_leaving_the_stream_as_a_context_manager_cancels_it(rig_of: RigOf) -> None:
    rig = rig_of(saying("x", stop=False))
    with rig.session.stream("Go", max_new_tokens=120) as stream:
        next(stream)
    assert stream.answer().finish_reason in ("cancelled", "length")
    assert rig.session.stream("Go", max_new_tokens=2).answer().text == "xx"


def test_cancelling_a_request_that_waits_answers_at_once(rig_of: RigOf) -> None:
    rig = rig_of(saying("x", stop=False))
    rig.decoder.gate = threading.Semaphore(0)
    running = rig.session.stream("Go", max_new_tokens=3)
    waiting = rig.session.stream("Go")
    waiting.cancel()
    answer = waiting.answer()
    assert (answer.text, answer.token_ids, answer.finish_reason) == ("", (), "cancelled")
    assert not running.done
    rig.decoder.gate.release(10)
    running.answer()


def test_deadline_keeps_what_was_written(rig_of: RigOf) -> None:
    rig = rig_of(saying("x", stop=False))
    rig.decoder.gate = threading.Semaphore(2)
    stream = rig.session.stream("Go", max_new_tokens=100, deadline_s=1000.0)
    got = [next(stream).text for _ in range(3)]
    stream._channel.control._deadline_ns = time.monotonic_ns()
    rig.decoder.gate.release(1000)
    answer = stream.answer()
    assert (answer.text, answer.finish_reason) == ("".join(got), "deadline")


def test_deadline_before_the_first_token_is_an_error(rig_of: RigOf) -> None:
    rig = rig_of(saying("x"))
    encode, asked, passing = rig.vision.encode, [], threading.Event()

    def until_it_has_passed(tiles: np.ndarray, layout: object) -> np.ndarray:
        assert passing.wait(10)
        asked[0]._channel.control._deadline_ns = time.monotonic_ns()
        return encode(tiles, layout)

    rig.vision.encode = until_it_has_passed
    asked.append(rig.session.stream("Go", [PICTURE], deadline_s=1000.0))
    passing.set()
    with pytest.raises(DeadlineError, match="before the first token"):
        asked[0].answer()
    assert rig.decoder.prefilled == []


def test_deadline_of_a_request_that_waits_ends_it_while_another_runs(rig_of: RigOf) -> None:
    rig = rig_of(saying("x", stop=False))
    rig.decoder.gate = threading.Semaphore(0)
    running = rig.session.stream("Go", max_new_tokens=50)
    waiting = rig.session.stream("Go", deadline_s=1e-6)
    rig.decoder.gate.release()
    with pytest.raises(DeadlineError, match="while the request waited"):
        waiting.answer()
    assert not running.done
    rig.decoder.gate.release(100)
    running.answer()


def test_timeout_of_answer_leaves_the_request_running(rig_of: RigOf) -> None:
    rig = rig_of(saying("abc"))
    rig.decoder.gate = threading.Semaphore(0)
    stream = rig.session.stream("Go")
    with pytest.raises(DeadlineError, match="no answer within"):
        stream.answer(timeout_s=0.01)
    rig.decoder.gate.release(10)
    assert stream.answer().text == "abc"


# --- threads, queue, close -----------------------------------------------------------------------------------------


def test_many_threads_get_their_own_answers_from_one_owner_thread(rig_of: RigOf) -> None:
    rig = rig_of(max_pending=64)
    prompts = [f"question {index}" for index in range(24)]
    expected = [rig.session.generate(prompt, [PICTURE]).text for prompt in prompts]
    got: dict[str, str] = {}
    threads = [
        threading.Thread(target=lambda p=prompt: got.update({p: rig.session.generate(p, [PICTURE]).text}))
        for prompt in prompts
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [got[prompt] for prompt in prompts] == expected
    assert len(rig.decoder.threads | rig.vision.threads) == 1


def test_full_queue_refuses_and_an_abandoned_request_makes_room(rig_of: RigOf) -> None:
    rig = rig_of(saying("x", stop=False), max_pending=2)
    rig.decoder.gate = threading.Semaphore(0)
    running = rig.session.stream("Go", max_new_tokens=4)
    next(running)  # it has left the queue
    first, second = (rig.session.stream("Go", max_new_tokens=2) for _ in range(2))
    with pytest.raises(BusyError, match="2 requests wait already, the limit is 2"):
        rig.session.stream("Go")
    del second
    gc.collect()
    third = rig.session.stream("Go", max_new_tokens=1)
    rig.decoder.gate.release(100)
    assert [stream.answer().finish_reason for stream in (running, first, third)] == ["length"] * 3


def test_abandoned_iterator_is_cancelled_and_leaves_nothing_behind(rig_of: RigOf) -> None:
    rig = rig_of(saying("x", stop=False))
    rig.decoder.gate = threading.Semaphore(0)
    stream = rig.session.stream("Go", [PICTURE], max_new_tokens=100)
    next(stream)
    channel = weakref.ref(stream._channel)
    del stream
    gc.collect()
    rig.decoder.gate.release(1)
    answer = rig.session.stream("Go", max_new_tokens=1).answer()  # runs after the abandoned one has ended
    assert answer.finish_reason == "length"
    assert rig.decoder.decoded <= 2
    gc.collect()
    assert channel() is None


def test_unread_stream_runs_to_its_end_and_wedges_nobody(rig_of: RigOf) -> None:
    rig = rig_of(saying("abc"))
    unread = rig.session.stream("Go")
    assert rig.session.generate("Go").text == "abc"
    assert unread.done and unread.answer().text == "abc"
    assert "".join(delta.text for delta in unread) == "abc"


def test_close_refuses_who_waits_cancels_who_runs_and_is_idempotent(rig_of: RigOf) -> None:
    rig = rig_of(saying("x", stop=False))
    rig.decoder.gate = threading.Semaphore(0)
    running = rig.session.stream("Go", max_new_tokens=100)
    next(running)
    waiting = rig.session.stream("Go")
    closers = [threading.Thread(target=rig.session.close) for _ in range(3)]
    for closer in closers:
        closer.start()
    while not rig.session._owner._closed:
        threading.Event().wait(0.001)
    rig.decoder.gate.release(1000)
    for closer in closers:
        closer.join()
    rig.session.close()
    assert running.answer().finish_reason == "cancelled"
    with pytest.raises(ClosedError):
        waiting.answer()
    assert (rig.decoder.closed, rig.vision.closed) == (1, 1)
    for call in (lambda: rig.session.stream("x"), rig.session.chat, lambda: rig.session.watch("x", "y")):
        with pytest.raises(ClosedError, match="the session is closed"):
            call()


def test_close_inside_a_callback_does_not_wait_for_itself(rig_of: RigOf) -> None:
    rig = rig_of(saying("x", stop=False))
    stream = rig.session.stream("Go", max_new_tokens=100, on_delta=lambda delta: rig.session.close())
    assert stream.answer().finish_reason == "cancelled"


def test_forgotten_session_frees_its_engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, vision = FakeDecoder(), FakeVision()
    monkeypatch.setattr(startup, "open_decoder", lambda bundle, **options: decoder)
    monkeypatch.setattr(startup, "open_vision", lambda bundle, **options: vision)
    fake_bundle(tmp_path / "b")
    session = Session.open(tmp_path / "b")
    thread = session._owner._thread
    del session
    gc.collect()
    thread.join(10)
    assert not thread.is_alive()
    assert (decoder.closed, vision.closed) == (1, 1)


def test_session_lives_as_long_as_somebody_reads_from_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup, "open_decoder", lambda bundle, *, slots, **options: _opened(slots))
    monkeypatch.setattr(startup, "open_vision", lambda bundle, **options: FakeVision())
    fake_bundle(tmp_path / "b")

    def ask() -> TextStream:
        return Session.open(tmp_path / "b").stream("Go")

    stream = ask()
    gc.collect()
    assert stream.answer().text == "abc"


def _opened(slots: int) -> FakeDecoder:
    decoder = FakeDecoder(script=saying("abc"))
    decoder.open(slots)
    return decoder


# --- failures ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["vision", "decoder"])
def test_failing_engine_fails_its_request_alone(rig_of: RigOf, part: str) -> None:
    rig = rig_of(saying("abc"))
    getattr(rig, part).fail_next = EngineError("device lost", hint="restart")
    stream = rig.session.stream("Go", [PICTURE])
    with pytest.raises(EngineError, match="device lost"):
        list(stream)
    with pytest.raises(EngineError, match="device lost"):
        stream.answer()
    assert rig.session.generate("Go", [PICTURE]).text == "abc"


def test_error_in_the_middle_comes_after_the_deltas_before_it(rig_of: RigOf) -> None:
    rig = rig_of(saying("abcdef"))
    rig.decoder.gate = threading.Semaphore(2)
    stream = rig.session.stream("Go")
    got = [next(stream).text for _ in range(3)]
    rig.decoder._logits = lambda slot: np.full(VOCAB, np.nan, np.float32)
    rig.decoder.gate.release(10)
    with pytest.raises(EngineError, match="not finite at step 3"):
        next(stream)
    assert got == ["a", "b", "c"]


def test_decoder_that_does_not_open_leaves_nothing_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = FakeDecoder()

    def refuse(bundle: Bundle, **options: object) -> FakeVision:
        raise EngineError("no vision here")

    monkeypatch.setattr(startup, "open_decoder", lambda bundle, **options: decoder)
    monkeypatch.setattr(startup, "open_vision", refuse)
    fake_bundle(tmp_path / "b")
    threads = threading.active_count()
    with pytest.raises(EngineError, match="no vision here"):
        Session.open(tmp_path / "b")
    assert decoder.closed == 1
    assert threading.active_count() == threads


def test_opening_what_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no bundle there"):
        Session.open(tmp_path / "nothing")
    with pytest.raises(UsageError, match="chats is -1"):
        Session.open(tmp_path, chats=-1)
    fake_bundle(tmp_path / "b")
    with pytest.raises(UsageError, match="max_pending is 0"):
        Session.open(tmp_path / "b", max_pending=0)
    with pytest.raises(BundleError, match="has no decoder 'cuda', only onnx"):
        Session.open(tmp_path / "b", decoder="cuda")


def test_wall_clock_is_one_offset_of_the_monotonic_clock(rig_of: RigOf) -> None:
    session = rig_of().session
    now = time.monotonic_ns()
    assert abs(session.wall_time_ns(now) - time.time_ns()) < 10**10
    assert session.wall_time_ns(now + 5) - session.wall_time_ns(now) == 5


def test_sessions_are_context_managers(rig_of: RigOf) -> None:
    rig = rig_of(saying("abc"))
    with rig.session as session:
        assert session.generate("Go").text == "abc"
    assert session.closed and rig.decoder.closed == 1
