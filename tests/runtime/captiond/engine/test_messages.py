"""What crosses the process boundary comes out as it went in."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime import errors
from runtime.captiond.asks import (
    Ask,
    AskDelta,
    AskMessage,
    AskResult,
    ConstraintSpec,
    NewestFrame,
    SharedImage,
    TokenChance,
)
from runtime.captiond.config.settings import EngineSettings
from runtime.captiond.engine import messages
from runtime.captiond.engine.messages import EngineFacts, Taken
from runtime.captiond.engine.wire import WireError

NUMBERS = st.floats(allow_nan=False, width=32)
PARTS = st.lists(st.text(max_size=10) | st.integers(0, 3), max_size=3).map(tuple)
CHANCES = st.builds(TokenChance, st.text(max_size=4), st.binary(max_size=4), NUMBERS)
PICTURES = st.builds(NewestFrame, st.text(max_size=5), st.integers(-1, 9)) | st.builds(
    SharedImage, *[st.integers(0, 9)] * 3
)
SPECS = st.none() | st.builds(
    ConstraintSpec,
    st.sampled_from(["json_schema", "json", "choice"]),
    st.none() | st.booleans() | st.just({"type": "object", "properties": {}}),
    st.lists(st.text(max_size=5), max_size=3).map(tuple),
)
ASKS = st.builds(
    Ask,
    kind=st.sampled_from(["caption", "chat"]),
    messages=st.lists(st.builds(AskMessage, st.sampled_from(["system", "user", "assistant"]), PARTS), max_size=3).map(
        tuple
    ),
    pictures=st.lists(PICTURES, max_size=3).map(tuple),
    params=st.fixed_dictionaries(
        {"temperature": NUMBERS, "stop": st.lists(st.text(max_size=3), max_size=2).map(tuple)},
        optional={"top_logprobs": st.integers(0, 20), "seed": st.none() | st.integers(0, 2**64 - 1)},
    ),
    constraint=SPECS,
    priority=st.integers(-100, 100),
    weight=st.floats(0.5, 9),
    deadline_s=st.floats(1, 60),
)


def over_the_wire(message: object) -> dict[str, object]:
    crossed: dict[str, object] = json.loads(json.dumps(message))
    return crossed


@given(ASKS)
def test_ask_comes_out_as_it_went_in(ask: Ask) -> None:
    assert ask.deadline_s is not None
    message, files = messages.ask_message(7, ask, ask.deadline_s)
    assert messages.number_of(message) == 7
    assert messages.ask_of(over_the_wire(message), files) == ask


@given(
    st.builds(AskDelta, st.text(), st.integers(0, 9), NUMBERS, st.integers(0, 9), st.integers(0, 2**62))
    | st.builds(
        AskDelta,
        st.text(),
        st.integers(0, 9),
        NUMBERS,
        st.integers(0, 9),
        st.integers(0, 2**62),
        CHANCES,
        st.lists(CHANCES, max_size=3).map(tuple),
    )
)
def test_delta_comes_out_as_it_went_in(delta: AskDelta) -> None:
    assert messages.delta_of(over_the_wire(messages.delta_message(3, delta))) == delta


def test_result_facts_frame_and_settings_come_out_as_they_went_in() -> None:
    result = AskResult("a cat", "stop", 10, 2, 4, 1, 5, 9, {"ttft_ms": 1.5})
    assert messages.result_of(over_the_wire(messages.result_message(1, result))) == result
    facts = EngineFacts("demo", "onnx", 512, 256, {"weights": 1 << 40})
    assert messages.facts_of(over_the_wire(messages.ready_message(facts))) == facts
    taken = Taken(4, 10**12, "arrival", 640, 480, 2, 18)
    assert messages.taken_of(over_the_wire(messages.started_message(1, taken))) == taken
    assert messages.taken_of(over_the_wire(messages.started_message(1, None))) is None
    settings = EngineSettings(bundle="/somewhere", threads=3, kv="i8")
    assert messages.settings_of(over_the_wire(messages.open_message(settings, 5))) == (settings, 5)


CLASSES = [cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, errors.VlmError)]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_error_comes_back_as_its_class_with_message_and_hint(cls: type[errors.VlmError]) -> None:
    for hint in (None, "a setting"):
        back = messages.error_of(over_the_wire(messages.error_values(cls("too long", hint=hint))))
        assert type(back) is cls
        assert (back.message, back.hint) == ("too long", hint)


def test_error_of_another_kind_comes_back_as_an_engine_error() -> None:
    class Local(errors.ImageError):
        pass

    assert type(messages.error_of(messages.error_values(Local("x")))) is errors.ImageError
    back = messages.error_of(messages.error_values(KeyError("weights")))
    assert type(back) is errors.EngineError and back.message == "KeyError: 'weights'"
    assert type(messages.error_of({"error": "os", "message": "x", "hint": None})) is errors.EngineError


@pytest.mark.parametrize(
    "message",
    [
        {"type": "delta"},
        {"type": "delta", "text": "a", "id": None, "logprob": 0.0, "index": 0, "t_ns": 0},
        {"type": "delta", "text": "a", "id": 1, "logprob": 0.0, "index": 0, "t_ns": 0, "token": ["a", "zz", 0.0]},
        {"type": "delta", "text": "a", "id": 1, "logprob": 0.0, "index": 0, "t_ns": 0, "token": 3},
    ],
    ids=["empty", "null", "no hex", "no list"],
)
def test_message_that_cannot_be_read_is_the_peers_fault(message: dict[str, object]) -> None:
    with pytest.raises(WireError, match="'delta'"):
        messages.delta_of(message)


def test_number_that_is_none_is_the_peers_fault() -> None:
    for wrong in (None, "seven", math.nan, math.inf):
        with pytest.raises(WireError):
            messages.number_of({"type": "x", "ask": wrong})
