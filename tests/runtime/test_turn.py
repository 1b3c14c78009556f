"""Messages of a question, and which of its images belong together."""

from __future__ import annotations

import numpy as np
import pytest

from runtime.errors import PromptError
from runtime.pictures import Shown
from runtime.prompt import ImagePart, Message
from runtime.slots import KvCache
from runtime.turn import Turn, check_text, opening


def shown(images: int, frames: int = 0) -> Shown:
    rgb = np.zeros((1, 1, 3), np.uint8)
    return Shown([rgb] * images, [rgb] * frames)


def test_images_come_before_the_text_and_are_numbered_behind_those_of_the_history() -> None:
    history = (Message("user", (ImagePart(0), "a")), Message("assistant", ("b",)))
    turn = Turn("c", history, (None,), KvCache)
    asked = Message("user", (ImagePart(1), ImagePart(2), ImagePart(3, frame=True), "c"))
    assert turn.messages(shown(2, 1)) == (*history, asked)
    assert turn.together(shown(2, 1)) == [[0, 1]]


def test_a_conversation_groups_its_images_by_message_and_keeps_the_unplaced() -> None:
    history = (Message("user", (ImagePart(2), "a", ImagePart(0))), Message("user", (ImagePart(7), "b")))
    turn = Turn(None, history, (), KvCache)
    assert turn.messages(shown(4)) == history
    assert turn.together(shown(4)) == [[2, 0], [], [1, 3]]


def test_system_message_opens_the_conversation() -> None:
    assert opening(None) == ()
    assert opening("Be brief.") == (Message("system", ("Be brief.",)),)


@pytest.mark.parametrize("bad", [None, 3, b"x", "\udc80"])
def test_what_is_not_text_is_refused(bad: object) -> None:
    with pytest.raises(PromptError, match="prompt"):
        check_text("prompt", bad)
