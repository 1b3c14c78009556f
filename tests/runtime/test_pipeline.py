"""Stages that no session test can see from outside: what is kept of a KV cache, and how a long prompt is fed."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from runtime.pipeline import PREFILL_CHUNK, _common_prefix
from runtime.prompt import EncodedPrompt
from tests.runtime.fakes import Rig, rig_of, saying  # noqa: F401 - a fixture


def encoded(*ids: int, images: tuple[slice, ...] = ()) -> EncodedPrompt:
    return EncodedPrompt(np.array(ids, np.int64), images, tuple(range(len(images))))


@pytest.mark.parametrize(
    ("cached", "prompt", "kept"),
    [
        ([], encoded(5, 6), 0),
        ([5, 6], encoded(5, 6, 7), 2),
        ([5, 6, 7], encoded(5, 6, 7), 2),  # one token at least must be fed to get logits
        ([5, 6, 8, 9], encoded(5, 6, 7, 9, 1), 2),
        ([5, 3, 3], encoded(5, 3, 3, 3, 6, images=(slice(1, 4),)), 1),  # half an image: none of it
        ([5, 3, 3, 3], encoded(5, 3, 3, 3, 6, images=(slice(1, 4),)), 4),
        ([9, 5], encoded(5, 9), 0),
    ],
)
def test_only_what_both_begin_with_is_kept_and_images_whole(
    cached: list[int], prompt: EncodedPrompt, kept: int
) -> None:
    assert _common_prefix(cached, prompt) == kept


def test_long_prompts_are_fed_in_chunks_and_cancelled_between_them(rig_of: object) -> None:
    rig: Rig = rig_of(saying("abc"), context=3000)
    whole = rig.session.generate("x" * 1200)
    assert rig.decoder.prefilled == [PREFILL_CHUNK, PREFILL_CHUNK, whole.usage.prompt_tokens - 2 * PREFILL_CHUNK]
    assert whole.text == "abc"
    entered, go = threading.Event(), threading.Event()
    prefill = rig.decoder.prefill

    def held(slot: int, inputs_embeds: np.ndarray, *, num_logits: int = 1) -> np.ndarray:
        entered.set()
        go.wait(10)
        return prefill(slot, inputs_embeds, num_logits=num_logits)

    rig.decoder.prefill = held
    rig.decoder.prefilled.clear()
    stream = rig.session.stream("x" * 1200)
    assert entered.wait(10)
    stream.cancel()
    go.set()
    assert stream.answer().finish_reason == "cancelled"
    assert rig.decoder.prefilled == [PREFILL_CHUNK]


def test_chat_continues_after_a_prompt_that_was_cancelled_half_way(rig_of: object) -> None:
    rig: Rig = rig_of(context=4000)
    chat = rig.session.chat()
    prefill, calls = rig.decoder.prefill, []

    def cancel_first(slot: int, inputs_embeds: np.ndarray, *, num_logits: int = 1) -> np.ndarray:
        calls.append(slot)
        if len(calls) == 1:
            chat._pending_control.cancelled = True
        return prefill(slot, inputs_embeds, num_logits=num_logits)

    entered = threading.Event()
    chat._pending_control = None
    rig.decoder.prefill = lambda *args, **options: entered.wait(10) and cancel_first(*args, **options)
    stream = chat.stream("x" * 1200)
    chat._pending_control = stream._channel.control
    entered.set()
    assert stream.answer().finish_reason == "cancelled"
    answer = chat.generate("x" * 1200)
    assert answer.usage.cached_tokens == PREFILL_CHUNK
    assert answer.text == rig.session.generate("x" * 1200).text
