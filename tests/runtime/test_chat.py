"""Conversations: equal to a fresh request with everything said so far, and only what is new is prefilled."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable

import numpy as np
import pytest

from runtime.errors import ClosedError, EngineError, PromptError, UsageError
from runtime.prompt import ImagePart, Message
from runtime.types import GenerationParams
from tests.runtime.fakes import Rig, rig_of, saying  # noqa: F401 - a fixture

RigOf = Callable[..., Rig]
RED = np.full((20, 30, 3), (200, 0, 0), np.uint8)
BLUE = np.full((9, 30, 3), (0, 0, 210), np.uint8)
TURNS = [("First?", [RED]), ("And second?", []), ("Now?", [BLUE, RED]), ("Last?", [])]


@pytest.mark.parametrize("system", [None, "Be brief."])
@pytest.mark.parametrize(
    "params", [GenerationParams(), GenerationParams(max_new_tokens=3), GenerationParams(stop=("a",))]
)
def test_answers_equal_a_fresh_request_with_the_whole_conversation(
    rig_of: RigOf, system: str | None, params: GenerationParams
) -> None:
    rig = rig_of(context=400)
    chat = rig.session.chat(system)
    said: list[Message] = [] if system is None else [Message("system", (system,))]
    shown: list[np.ndarray] = []
    for prompt, images in TURNS:
        answer = chat.generate(prompt, images, params=params)
        parts = (*(ImagePart(len(shown) + index) for index in range(len(images))), prompt)
        said.append(Message("user", parts))
        shown += images
        fresh = rig.session.generate(said, shown, params=params)
        assert (answer.text, answer.token_ids) == (fresh.text, fresh.token_ids)
        assert answer.usage.prompt_tokens == fresh.usage.prompt_tokens
        said.append(Message("assistant", (answer.text,)))
    assert chat.messages == tuple(said)


def test_second_turn_prefills_only_what_is_new(rig_of: RigOf) -> None:
    rig = rig_of(saying("abc", "de"))
    chat = rig.session.chat()
    first = chat.generate("One?", [RED])
    second = chat.generate("Two?")
    held = first.usage.prompt_tokens + len(first.token_ids)
    assert second.usage.cached_tokens == held
    new = second.usage.prompt_tokens - held
    assert rig.decoder.prefilled == [first.usage.prompt_tokens, new]
    # The closing end token of the answer, the user's opening, the words, the blank and the generation prompt.
    assert new == 1 + len("USER: Two? ASSISTANT:")
    assert rig.vision.calls == 1


def test_last_token_of_a_cut_answer_is_fed_with_the_next_turn(rig_of: RigOf) -> None:
    rig = rig_of(saying("abcdef"))
    chat = rig.session.chat()
    first = chat.generate("One?", max_new_tokens=3)
    second = chat.generate("Two?")
    assert second.usage.cached_tokens == first.usage.prompt_tokens + 2
    slot = chat._cache.slot
    assert slot is not None
    held = [int(row[0]) for row in rig.decoder.rows[slot]]
    assert held[: second.usage.prompt_tokens] == list(rig.session._pipeline.encode(chat.messages[:-1], []).token_ids)


def test_context_overflow_is_refused_before_anything_runs(rig_of: RigOf) -> None:
    rig = rig_of(saying("abc"), context=70)
    chat = rig.session.chat()
    chat.generate("One?")
    before, prefilled = chat.messages, list(rig.decoder.prefilled)
    with pytest.raises(PromptError, match="the context holds 70"):
        chat.generate("x" * 40)
    assert rig.decoder.prefilled == prefilled and chat.messages == before
    assert chat.generate("Two?").usage.cached_tokens > 0


def test_conversation_that_lost_its_slot_is_prefilled_again_and_answers_the_same(rig_of: RigOf) -> None:
    rig = rig_of(context=400)
    alone, talk = rig.session.chat(), [("One?", [RED]), ("Two?", []), ("Three?", [])]
    expected = [alone.generate(prompt, images).text for prompt, images in talk]
    del alone
    left, right = rig.session.chat(), rig.session.chat()  # the session was opened for one
    vision_calls = rig.vision.calls
    for turn, (prompt, images) in enumerate(talk):
        for chat in (left, right):
            answer = chat.generate(prompt, images)
            assert answer.text == expected[turn]
            assert answer.usage.cached_tokens == 0
    assert rig.vision.calls == vision_calls + 2  # embeddings are kept: nothing is seen twice


def test_as_many_conversations_as_the_session_was_opened_for_keep_their_cache(rig_of: RigOf) -> None:
    rig = rig_of(chats=3)
    chats = [rig.session.chat() for _ in range(3)]
    for chat in chats:
        chat.generate("One?")
    rig.session.generate("Something else")
    assert all(chat.generate("Two?").usage.cached_tokens > 0 for chat in chats)


def test_slot_of_a_forgotten_conversation_is_taken_before_one_in_use(rig_of: RigOf) -> None:
    rig = rig_of(chats=2)
    kept, forgotten = rig.session.chat(), rig.session.chat()
    kept.generate("One?")
    forgotten.generate("One?")
    del forgotten
    gc.collect()
    third = rig.session.chat()
    third.generate("One?")
    assert kept.generate("Two?").usage.cached_tokens > 0
    assert third.generate("Two?").usage.cached_tokens > 0


def test_failed_turn_is_not_part_of_the_conversation(rig_of: RigOf) -> None:
    rig = rig_of(context=400)
    chat = rig.session.chat()
    chat.generate("One?", [RED])
    before = chat.messages
    rig.decoder.fail_next = EngineError("device lost")
    with pytest.raises(EngineError):
        chat.generate("Two?", [BLUE])
    assert chat.messages == before
    other = rig.session.chat()
    other.generate("One?", [RED])
    assert chat.generate("Two?").text == other.generate("Two?").text


def test_cancelled_turn_keeps_what_was_said_and_goes_on(rig_of: RigOf) -> None:
    rig = rig_of(saying("x", stop=False), context=400)
    rig.decoder.gate = threading.Semaphore(2)
    chat = rig.session.chat()
    stream = chat.stream("One?", max_new_tokens=100)
    for _ in range(3):
        next(stream)
    with pytest.raises(UsageError, match="still being written"):
        chat.stream("Two?")
    stream.cancel()
    rig.decoder.gate.release(1000)
    chat.generate("Two?", max_new_tokens=2)
    answer = stream.answer()
    assert answer.finish_reason == "cancelled"
    assert [message.parts for message in chat.messages] == [("One?",), (answer.text,), ("Two?",), ("xx",)]


def test_turn_cancelled_before_its_first_token_leaves_no_trace(rig_of: RigOf) -> None:
    rig = rig_of(saying("x", stop=False), context=400)
    rig.decoder.gate = threading.Semaphore(0)
    busy = rig.session.stream("Go", max_new_tokens=2)
    chat = rig.session.chat()
    chat.stream("One?").cancel()
    rig.decoder.gate.release(1000)
    busy.answer()
    assert chat.messages == ()
    assert chat.generate("Two?", max_new_tokens=1).text == "x"


def test_abandoned_turn_does_not_block_the_next(rig_of: RigOf) -> None:
    rig = rig_of(saying("x", stop=False), context=400)
    chat = rig.session.chat()
    chat.stream("One?", max_new_tokens=300)
    gc.collect()
    assert chat.generate("Two?", max_new_tokens=1).text == "x"


def test_reset_forgets_and_close_ends(rig_of: RigOf) -> None:
    rig = rig_of()
    with rig.session.chat("Be brief.") as chat:
        first = chat.generate("One?").text
        chat.generate("Two?")
        chat.reset()
        assert [message.role for message in chat.messages] == ["system"]
        assert chat.generate("One?").text == first
    chat.close()
    with pytest.raises(ClosedError, match="the chat is closed"):
        chat.generate("Three?")


def test_session_opened_without_conversations_has_none(rig_of: RigOf) -> None:
    with pytest.raises(UsageError, match="keeps no conversations"):
        rig_of(chats=0).session.chat()


def test_chat_of_a_closed_session_is_refused(rig_of: RigOf) -> None:
    rig = rig_of()
    chat = rig.session.chat()
    rig.session.close()
    with pytest.raises(ClosedError):
        chat.generate("One?")
