"""Questions of the daemon as requests of a session: what is handed over, with a session that only remembers."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest

from runtime.captiond.asks import Ask, AskMessage, ConstraintSpec
from runtime.captiond.engine.model import SessionModel
from runtime.captiond.engine.server import Pixels
from runtime.errors import DeviceLostError, EngineError, InputError
from runtime.prompt import ImagePart, Message
from runtime.session import Session
from runtime.types import GenerationParams


class Remembering:
    """Stands for a session: `stream` keeps its arguments."""

    steps = 7

    def stream(self, prompt: object, **given: object) -> None:
        self.prompt, self.given = prompt, given


def asked(ask: Ask, *images: Pixels) -> Remembering:
    session = Remembering()
    SessionModel(cast(Session, session)).begin(ask, images)
    return session


def test_question_becomes_a_request_of_the_session() -> None:
    rgb = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    ask = Ask(
        "caption",
        (AskMessage("system", ("Be brief.",)), AskMessage("user", (0, "What is it?"))),
        params={"max_new_tokens": 3, "stop": ("\n",)},
        priority=4,
        weight=2.5,
        deadline_s=9.0,
    )
    session = asked(ask, Pixels(memoryview(rgb.tobytes()), 3, 2))
    assert session.prompt == [Message("system", ("Be brief.",)), Message("user", (ImagePart(0), "What is it?"))]
    images: Any = session.given.pop("images")
    assert len(images) == 1 and np.array_equal(images[0], rgb)
    assert session.given == {
        "params": GenerationParams(max_new_tokens=3, stop=("\n",)),
        "deadline_s": 9.0,
        "priority": 4,
        "weight": 2.5,
        "constraint": None,
    }


def test_constraint_is_made_in_the_engine() -> None:
    session = asked(Ask("chat", (), constraint=ConstraintSpec("choice", choices=("yes", "no"))))
    assert hasattr(session.given["constraint"], "matcher")


def test_unknown_parameter_is_the_callers_mistake() -> None:
    with pytest.raises(InputError, match="warmth"):
        asked(Ask("chat", (), params={"warmth": 1}))


def test_only_a_lost_device_is_fatal() -> None:
    model = SessionModel(cast(Session, Remembering()))
    assert model.steps == 7
    assert model.fatal(DeviceLostError("the CUDA context is lost"))
    assert not model.fatal(EngineError("the logits are not finite"))
    assert not model.fatal(MemoryError())
